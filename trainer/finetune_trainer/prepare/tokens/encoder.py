"""Examples of one layout to token ids. Picklable: the processes that tokenise load the tokenizer from its file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.data.preferences import Completions
from finetune_trainer.prepare.observed.encoded import Encoded, Remark
from finetune_trainer.prepare.observed.texts import compared_texts, contradictions
from finetune_trainer.prepare.tokens.backend import Backend, Ids, Mask, backend
from finetune_trainer.prepare.tokens.dialect import STANDARD, Dialect
from finetune_trainer.prepare.tokens.preferred import preferred
from finetune_trainer.prepare.tokens.proof import Proof, is_sampled
from finetune_trainer.prepare.tokens.render import Renderer, TemplateError
from finetune_trainer.prepare.tokens.spans import (
    NotPrefixConsistentError,
    RenderedText,
    Speaker,
)
from finetune_trainer.prepare.tokens.templates import ChatTemplate
from finetune_trainer.prepare.tokens.text_pairs import encoded_pairs
from finetune_trainer.prepare.tokens.word_labels import encoded_words
from finetune_trainer.prepare.tokens.written import Comparison


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A conversation as text, remarks on it, and whether its tokens are compared with the row."""

    speech: RenderedText
    remarks: tuple[Remark, ...]
    looked_at: bool


@dataclass(frozen=True)
class Encoder:
    """How examples of one layout become token ids.

    Attributes:
        definition: file with the tokenizer's JSON.
        limit: tokens at which rows are cut.
        eos_id: ends texts and pairs that do not end with it already.
        loss_on_prompt: prompts carry loss too (lossOn: all).
        to_target: completions are the target of an encoder-decoder, not the prompt's continuation.
        completions: how completions of preference tuning become rows; None for other tasks.
        prompts: put before an anchor, and before the texts that it is compared with.
        hidden: words of texts are hidden and to be found (masked-lm): each row has the tokenizer's special tokens.
        template: of conversations.
        specials: what the template reads of the tokenizer.
        dialect: the forms that the template takes.
        end_marks: those of the known ends of a turn that are one token of the tokenizer.
        ends: ids that end an answer, as rows teach it.
        marks: ids of the special tokens that the template writes.
        notes: what a careful reader should know.
        extended: folder with the tokenizer's files, where it has new tokens.
        pair_separator: the text between the two texts of a row, see `messages.DatasetFacts`; None for one text.
        typed: whether the tokens of two texts differ by their types.
    """

    definition: Path
    layout: ExampleLayout
    limit: int
    eos_id: int | None = None
    unk_id: int | None = None
    embeddings: int | None = None
    loss_on_prompt: bool = False
    to_target: bool = False
    prompts: tuple[str, str] = ("", "")
    hidden: bool = False
    completions: Completions | None = None
    template: ChatTemplate | None = None
    specials: Mapping[str, Any] = field(default_factory=dict)
    dialect: Dialect = STANDARD
    end_marks: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    extended: Path | None = None
    pair_separator: str | None = None
    typed: bool = False

    def __call__(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        """Encode some examples; a Fault for each of which nothing can be learnt."""
        if self.completions is None:
            return self._encoded(batch)
        answers = iter(self._encoded([each for example in batch for each in example.completions]))
        mine = ([next(answers) for _ in example.completions] for example in batch)
        return [preferred(example, rows, self.completions) for example, rows in zip(batch, mine, strict=True)]

    @property
    def judged(self) -> bool:
        """Whether each row is one completion with a label."""
        return self.completions is not None and self.completions.judged

    def _encoded(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        encode: Mapping[ExampleLayout, Callable[[Sequence[Example]], list[Encoded | Fault]]] = {
            ExampleLayout.LABELLED: self._labelled,
            ExampleLayout.LABELLED_PAIR: self._labelled_pairs,
            ExampleLayout.WORDS: self._words,
            ExampleLayout.SPANS: self._words,
            ExampleLayout.LINES: self._words,
            ExampleLayout.TEXT: self._hidden if self.hidden else self._texts,
            ExampleLayout.PAIR: self._to_target if self.to_target else self._pairs,
            ExampleLayout.CHAT: self._chats,
            ExampleLayout.SIMILAR: self._similar,
        }
        return encode[self.layout](batch)

    @property
    def _backend(self) -> Backend:
        return backend(self.definition)

    @cached_property
    def speaker(self) -> Speaker:
        """Renders conversations and finds the assistant's words."""
        if self.template is None:
            raise ValueError("conversations need a template")
        return Speaker(
            Renderer(self.template.training, self.specials),
            self.template.marked,
            self.loss_on_prompt,
            str(self.specials.get("eos_token") or ""),
            self.dialect,
            self.end_marks,
        )

    @cached_property
    def _comparison(self) -> Comparison:
        inference = self.template.inference if self.template else ""
        return Comparison(self.speaker, replace(self.speaker, renderer=Renderer(inference, self.specials)))

    @cached_property
    def _proof(self) -> Proof:
        return Proof(self._backend, self.unk_id, self.loss_on_prompt)

    # ---------------------------------------------------------------- by layout

    def _labelled(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        cut = self._cut([example.text for example in batch])
        return [Encoded(ids, None, None, full) for ids, full in cut]

    def _cut(self, texts: Sequence[str]) -> list[tuple[Ids, int]]:
        """Return the ids of each text, cut at the limit, and how many there are without the cut."""
        whole = self._backend.ids(texts)
        # the tokenizer cuts before it adds its last special token, such as BERT's [SEP]
        cut = [index for index, ids in enumerate(whole) if len(ids) > self.limit]
        shorter = self._backend.cut([texts[index] for index in cut], self.limit) if cut else []
        rows = list(whole)
        for index, ids in zip(cut, shorter, strict=True):
            rows[index] = ids
        return [(ids, len(full)) for ids, full in zip(rows, whole, strict=True)]

    def _similar(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        """Encode each text of a row alone: the anchor, the positive, then the negatives."""
        query, document = self.prompts
        texts = [[query + one.text, *(document + text for text in compared_texts(one))] for one in batch]
        cut = iter(self._cut([text for row in texts for text in row]))
        rows: list[Encoded | Fault] = []
        for example, row in zip(batch, texts, strict=True):
            parts = [next(cut) for _ in row]
            lengths = np.array([len(ids) for ids, _ in parts], np.int32)
            if not lengths.all():
                rows.append(Fault(example.line, Code.NOTHING_TO_LEARN, "the tokenizer gives no token for a text"))
                continue
            ids = np.concatenate([ids for ids, _ in parts])
            rows.append(Encoded(ids, None, lengths, sum(full for _, full in parts), remarks=contradictions(example)))
        return rows

    def _labelled_pairs(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        return [*encoded_pairs(self._backend, batch, self.limit, self.pair_separator or "", self.typed)]

    def _words(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        return encoded_words(self._backend, batch, self.limit)

    def _texts(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        """Encode whole documents: those beyond the limit become rows of like length, one after the other."""
        rows: list[Encoded | Fault] = []
        for example, whole in zip(batch, self._backend.ids([example.text for example in batch]), strict=True):
            ids = self._ended(whole)
            count = -(-len(ids) // self.limit)
            parts = [len(part) for part in np.array_split(ids, count)]
            trained = np.ones(len(ids), np.bool_)
            if max(parts) == 1:  # the first token is never predicted
                message = f"no token to learn is left in the row in parts of {self.limit} tokens"
                rows.append(Fault(example.line, Code.NOTHING_TO_LEARN, message))
                continue
            row = Encoded(ids, trained, None, len(ids), parts=np.array(parts, np.int32) if count > 1 else None)
            rows.append(self._proven(example, row, example.text))
        return rows

    def _pairs(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        prompts = self._backend.ids([example.text for example in batch])
        completions = self._backend.ids([example.completion for example in batch], specials=False)
        rows: list[Encoded | Fault] = []
        for example, prompt, completion in zip(batch, prompts, completions, strict=True):
            start = len(prompt)
            while (
                start and prompt[start - 1] == self.eos_id
            ):  # this tokenizer ends each text, and the prompt is not an end
                start -= 1
            ids = self._ended(np.concatenate([prompt[:start], completion]))
            trained = np.ones(len(ids), np.bool_)
            if not self.loss_on_prompt:
                trained[:start] = False
            row = self._row(example, ids, trained)
            rows.append(row if isinstance(row, Fault) else self._proven(example, row, example.completion))
        return rows

    def _hidden(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        before, after = self._backend.around
        room = max(1, self.limit - len(before) - len(after))
        rows: list[Encoded | Fault] = []
        for example, ids in zip(batch, self._backend.ids([one.text for one in batch], specials=False), strict=True):
            if not len(ids):
                rows.append(Fault(example.line, Code.NOTHING_TO_LEARN, "the tokenizer gives no token for the text"))
                continue
            parts = [np.concatenate([before, part, after]) for part in np.array_split(ids, -(-len(ids) // room))]
            whole = np.concatenate(parts)
            rows.append(Encoded(whole, full_length=len(whole), parts=np.array([len(part) for part in parts], np.int32)))
        return rows

    def _to_target(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        inputs = self._labelled(batch)
        # a leading blank separates a completion from its prompt; here the completion is a separate text
        answers = self._backend.ids([example.completion.lstrip() for example in batch])
        rows: list[Encoded | Fault] = []
        for example, row, answer in zip(batch, inputs, answers, strict=True):
            if isinstance(row, Encoded):
                target = self._ended(answer)
                row = Encoded(row.ids, None, target[: self.limit], row.full_length, len(target))
                row = self._proven(example, row, example.completion)
            rows.append(row)
        return rows

    def _chats(self, batch: Sequence[Example]) -> list[Encoded | Fault]:
        spoken = [self._spoken(example) for example in batch]
        good = [one.speech for one in spoken if isinstance(one, _Spoken)]
        marked = iter(self._backend.marked([speech.text for speech in good], [speech.spans for speech in good]))
        rows: list[Encoded | Fault] = []
        for example, one in zip(batch, spoken, strict=True):
            if isinstance(one, Fault):
                rows.append(one)
                continue
            ids, trained = self._begun(*next(marked))
            if not one.speech.ended and not (len(ids) and ids[-1] == self.eos_id):
                learnt = self.loss_on_prompt or example.messages[-1].get("weight", 1) != 0
                if learnt and trained.any():  # what the template writes after an answer leads to its end
                    trained[np.flatnonzero(trained)[-1] :] = True
                ids, trained = self._ended(ids), np.append(trained, learnt)
            row = self._row(example, ids, trained)
            rows.append(row if isinstance(row, Fault) else self._remarked(example, row, one))
        return rows

    def _spoken(self, example: Example) -> "_Spoken | Fault":
        try:
            speech = self.speaker(example.messages, example.tools)
        except TemplateError as error:
            return Fault(example.line, Code.TEMPLATE_FAILED, f"the chat template refuses the conversation: {error}")
        except NotPrefixConsistentError as error:
            return Fault(example.line, Code.TEMPLATE_FAILED, str(error))
        verdict, first = self._comparison(example.messages, example.tools, speech)
        if verdict.lost:
            lost = " and ".join(verdict.lost)
            return Fault(example.line, Code.NOT_WRITTEN, f"the chat template does not write {lost}")
        return _Spoken(speech, verdict.remarks, first or is_sampled(example.line))

    def _remarked(self, example: Example, row: Encoded, spoken: "_Spoken") -> Encoded:
        difference = self._proof.of_chat(example, row) if spoken.looked_at else None
        if difference is None and not spoken.remarks:
            return row
        return replace(row, remarks=(*spoken.remarks, *([difference] if difference else ())))

    # ---------------------------------------------------------------- parts

    def _proven(self, example: Example, row: Encoded, expected: str) -> Encoded:
        if is_sampled(example.line) and (difference := self._proof.of_text(expected, row)):
            return replace(row, remarks=(difference,))
        return row

    def _begun(self, ids: Ids, trained: Mask) -> tuple[Ids, Mask]:
        """Leave out a second BOS: the template writes one, and what follows begins with it, too."""
        bos = self._backend.token_id(str(self.specials.get("bos_token") or ""))
        start = 0
        while bos is not None and start + 1 < len(ids) and ids[start] == ids[start + 1] == bos:
            start += 1
        return ids[start:], trained[start:]

    def _ended(self, ids: Ids) -> Ids:
        if len(ids) and ids[-1] == self.eos_id:
            return ids
        return np.append(ids, np.int32(self.eos_id or 0))

    def _row(self, example: Example, ids: Ids, trained: Mask) -> Encoded | Fault:
        # a row that was cut has no end, and none is added: it would teach to stop in mid-sentence
        kept = trained[: self.limit]
        if not kept[1:].any():  # the first token is never predicted
            message = f"no token to learn is left in the row when cut at {self.limit} tokens"
            if not trained[1:].any():
                message = "nothing in the row carries loss: the chat template marks no part of it as the assistant's"
            return Fault(example.line, Code.NOTHING_TO_LEARN, message)
        return Encoded(ids[: self.limit], kept, None, len(ids))
