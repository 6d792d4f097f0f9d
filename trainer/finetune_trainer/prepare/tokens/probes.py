"""What is known of a chat template before any row is read: that it works, what forms it takes, how its answers end."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from finetune_api.errors import Problem, SpecError
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.backend import Ids, Mask, backend
from finetune_trainer.prepare.tokens.dialect import ASKED, CALL, dialect_of
from finetune_trainer.prepare.tokens.render import Message, TemplateError
from finetune_trainer.prepare.tokens.spans import NotPrefixConsistentError

if TYPE_CHECKING:
    from finetune_trainer.prepare.tokens.encoder import Encoder

# a template may refuse a role or an order: rows without it can still be rendered
SEVERAL = [{"role": role, "content": f"{role} {turn}"} for turn in (1, 2) for role in ("user", "assistant")]
PLAIN = [{"role": role, "content": role} for role in ("user", "assistant")]
PROMPTED = [{"role": "system", "content": "system"}, *PLAIN]
CALLED: list[Message] = [ASKED, {"role": "assistant", "tool_calls": [CALL]}]


def probed(encoder: "Encoder", added: Mapping[str, int], field: str) -> "Encoder":
    """Return an encoder that knows how its template ends answers.

    Args:
        added: the tokenizer's added tokens and their ids.
        field: of the job, that the template comes from.

    Raises:
        SpecError: the template renders no conversation, or the assistant's words cannot be found.
    """
    encoder = replace(encoder, dialect=dialect_of(encoder.speaker.renderer))
    _check(encoder, field)
    known = set(added.values()) | {encoder.eos_id}
    known_ends = {added[mark] for mark in encoder.end_marks} | {encoder.eos_id}
    ends: list[int] = []
    marks: list[int] = []
    for number, (ids, trained) in enumerate(_tokens(encoder, (PLAIN, CALLED, SEVERAL, PROMPTED))):
        marks += [token for token in ids.tolist() if token in known]
        if number < 2:
            ends += _ends(encoder, ids[trained].tolist(), known_ends)
    found = tuple(dict.fromkeys(ends)) or encoder.ends
    return replace(encoder, ends=found, marks=tuple(sorted(set(marks))))


def _ends(encoder: "Encoder", learnt: Sequence[int], known: Container[int | None]) -> list[int]:
    """Return the ends that an answer ends with: one, or several with white space between them."""
    found: list[int] = []
    for token in reversed(learnt):
        if token in known:
            found.append(token)
        elif not backend(encoder.definition).text(np.array([token], np.int32)).isspace():
            break
    return found[::-1]


def _check(encoder: "Encoder", field: str) -> None:
    reasons: list[Exception] = []
    for messages in (SEVERAL, PLAIN):
        try:
            encoder.speaker(messages)
        except (TemplateError, NotPrefixConsistentError) as error:
            reasons.append(error)
    refused = [error for error in reasons if isinstance(error, NotPrefixConsistentError)]
    if refused:
        other = templates.to_name_instead(encoder.template.inference if encoder.template else "")
        raise SpecError(
            Problem(
                code="TemplateNotPrefixConsistent",
                field=field,
                message=str(refused[0]),
                cure=f"name a template with generation marks in {templates.FIELD}, such as {other}",
            )
        )
    if len(reasons) == 2:
        raise SpecError(templates.invalid_template(f"the chat template renders no conversation: {reasons[0]}", field))


def _tokens(encoder: "Encoder", conversations: Sequence[Sequence[Message]]) -> Iterator[tuple[Ids, Mask]]:
    """Yield ids of some conversations and which of them are learnt; nothing where the template refuses one."""
    for messages in conversations:
        try:
            speech = encoder.speaker(messages)
        except (TemplateError, NotPrefixConsistentError):
            yield np.zeros(0, np.int32), np.zeros(0, np.bool_)
            continue
        ((ids, trained),) = backend(encoder.definition).marked([speech.text], [speech.spans])
        if not speech.ended and encoder.eos_id is not None:
            ids, trained = np.append(ids, np.int32(encoder.eos_id)), np.append(trained, True)
        yield ids, trained
