"""The encoder of a job's data: its template, its marks and notes, and whether rows may share a sequence."""

import hashlib
from pathlib import Path

from finetune_api.errors import DataError, Problem, SpecError
from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.model.families import family_of
from finetune_trainer.prepare.data.examples import ExampleLayout
from finetune_trainer.prepare.data.preferences import Completions
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.backend import Backend, backend
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.language_marks import language_note
from finetune_trainer.prepare.tokens.probes import probed
from finetune_trainer.prepare.tokens.spans import (
    END_OF_TURN,
    NEXT_SPEAKER,
)
from finetune_trainer.prepare.tokens.templates import ChatTemplate
from finetune_trainer.prepare.tokens.text_pairs import separator_of
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, added_tokens


def encoder_for(
    spec: DatasetSpec,
    task: Task,
    tokenizer: LoadedTokenizer,
    layout: ExampleLayout,
    limit: int,
    given: str | None,
    work: Path,
    completions: Completions | None = None,
    prompts: tuple[str, str] = ("", ""),
) -> Encoder:
    """Return the encoder of a job's data.

    Args:
        completions: how completions of preference tuning become rows; None for other tasks.
        given: the text of `spec.chat_template`, as of `templates.given_template`.
        work: folder for the tokenizer's file.
        prompts: put before an anchor, and before the texts that it is compared with.

    Raises:
        SpecError: the named template does not work.
        DataError: conversations without any template.
    """
    template = _template(spec, tokenizer, given) if layout is ExampleLayout.CHAT else None
    name = hashlib.sha256(tokenizer.definition.encode()).hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    definition = work / f"tokenizer-{name}.json"
    definition.write_text(tokenizer.definition, "utf-8")
    known = added_tokens(tokenizer)
    if template and given and not (spec.chat_template or "").endswith(templates.SUFFIX):
        template = _begins_as_texts_do(template, tokenizer, backend(definition))
    encoder = Encoder(
        definition=definition,
        layout=layout,
        limit=limit,
        eos_id=tokenizer.eos_id,
        unk_id=tokenizer.unk_id,
        embeddings=tokenizer.embeddings,
        loss_on_prompt=spec.loss_on == "all",
        to_target=spec_of(task).has_target,
        prompts=prompts,
        hidden=spec_of(task).hides_tokens,
        completions=completions,
        template=template,
        specials=tokenizer.specials,
        end_marks=tuple(mark for mark in (*END_OF_TURN, *NEXT_SPEAKER) if mark in known),
        ends=(tokenizer.eos_id,) if tokenizer.eos_id is not None and spec_of(task).writes else (),
        notes=(
            *(_notes(template, tokenizer) if template else _prefix_note(task, tokenizer)),
            *language_note(task, tokenizer),
        ),
        extended=tokenizer.extended,
        pair_separator=separator_of(backend(definition)) if layout is ExampleLayout.LABELLED_PAIR else None,
        typed=tokenizer.typed,
    )
    if template is None:
        return encoder
    return probed(encoder, known, templates.FIELD if given else "spec.model")


def check_packing(spec: DatasetSpec, task: Task) -> None:
    """Raise SpecError for packing where rows cannot share a sequence."""
    if spec.packing and not spec_of(task).packs:
        raise SpecError(
            Problem(
                code="PackingNotForTask",
                field="spec.dataset.packing",
                message=f"rows of {task} cannot be packed: each has a result of its own",
                cure="set packing to false, or leave it out",
            )
        )


def _template(spec: DatasetSpec, tokenizer: LoadedTokenizer, given: str | None) -> ChatTemplate:
    text = given or (tokenizer.template if spec.chat_template != templates.NONE else None)
    if not text:
        lacking = "the model's tokenizer has no chat template"
        if spec.chat_template == templates.NONE:
            lacking = f"{templates.FIELD} is {templates.NONE}"
        raise DataError(
            Problem(
                code="NoChatTemplate",
                field="spec.dataset.train" if spec.train else "spec.dataset.mix",
                message=f"the rows are conversations, and {lacking}",
                cure=f"name one in {templates.FIELD}, such as chatml, or use a model that was tuned to chat",
            )
        )
    return templates.chat_template(text)


def _begins_as_texts_do(template: ChatTemplate, tokenizer: LoadedTokenizer, own: Backend) -> ChatTemplate:
    """Return a named template with BOS first, where the tokenizer begins each text with it: the model was trained so.

    A model's own template, or a file of the user's, stays as it is.
    """
    bos = str(tokenizer.specials.get("bos_token") or "")
    before, _ = own.around
    if not bos or before.tolist() != [own.token_id(bos)]:
        return template
    return templates.with_bos(template, bos)


def _notes(template: ChatTemplate, tokenizer: LoadedTokenizer) -> tuple[str, ...]:
    plain = [mark for mark in ("<|im_start|>", "<|im_end|>") if mark in template.training]
    known = added_tokens(tokenizer)
    missing = " and ".join(mark for mark in plain if mark not in known)
    if not missing:
        return ()
    return (f"the tokenizer has no token {missing}: such marks are learnt as plain text, several tokens each",)


def _prefix_note(task: Task, tokenizer: LoadedTokenizer) -> tuple[str, ...]:
    if not spec_of(task).has_target or not family_of(tokenizer.family).prefixed:
        return ()
    return ("T5 was trained with a prefix such as 'summarize: ' before each input; none is added to the prompts",)
