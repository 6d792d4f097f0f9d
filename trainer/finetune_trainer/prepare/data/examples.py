"""From a row to an example of a task: which column plays which part, and what a value must be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from itertools import takewhile
from typing import Any

from finetune_api.messages import ProblemType
from finetune_trainer.dataset.tagging import Entity, TagScheme
from finetune_trainer.prepare.data import alpaca, conversation, xlam
from finetune_trainer.prepare.data.call_checks import check_tool_use
from finetune_trainer.prepare.data.column_names import HELD_OUT, TESTED, TRAINED
from finetune_trainer.prepare.data.column_values import ABSENT, column_value, list_of, number_or_value, text_of
from finetune_trainer.prepare.data.conversation import Wrong
from finetune_trainer.prepare.data.formats import Code, Fault, Record, Row, json_type
from finetune_trainer.prepare.data.label_values import Target, encodable, target, whole_number
from finetune_trainer.prepare.data.word_tags import is_document_mark, tagged_lines, tagged_spans, tagged_words


class ExampleLayout(StrEnum):
    """What an example is made of."""

    LABELLED = "text, label"
    LABELLED_PAIR = "text, text_pair, label"
    WORDS = "tokens, tags"
    SPANS = "text, entities"
    LINES = "lines"
    TEXT = "text"
    PAIR = "prompt, completion"
    CHAT = "messages"
    SIMILAR = "anchor, positive"

    @property
    def parts(self) -> tuple[str, ...]:
        """Canonical column names."""
        return tuple(self.value.split(", "))

    @property
    def labelled(self) -> bool:
        """Whether a row has a label."""
        return "label" in self.parts

    @property
    def named(self) -> bool:
        """Whether a row has labels: of the text, or of its words."""
        return self.labelled or self in (ExampleLayout.WORDS, ExampleLayout.SPANS, ExampleLayout.LINES)


class RowSplit(IntEnum):
    """The split of a row, as a column gives it."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One checked row.

    Attributes:
        line: where its record starts in its file; a row number, from 1, where the format has no lines.
        text: the text, the prompt of a pair, or an anchor; empty for a conversation.
        label: of a labelled text with one label.
        completion: of a pair; the positive of an anchor.
        negatives: of an anchor; None for other rows.
        messages: of a conversation: `role` and `content`, and further keys that a chat template reads. A message with
            `weight: 0` carries no loss.
        tools: descriptions of tools, for the chat template.
        labels: of a text with any number of labels; None elsewhere.
        number: to be predicted of a text, or its label where that is a number in the file.
        rejected: the same prompt with the worse completion, where this one has the better.
        desirable: whether the completion is good, where a row says so of its only one.
        text_pair: the second text of a labelled row that has two.
        words: start and end of each labelled word, in characters of the text.
        tags: of each word.
    """

    line: int
    text: str
    label: str = ""
    completion: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    labels: tuple[str, ...] | None = None
    number: float | None = None
    rejected: "Example | None" = None
    desirable: bool | None = None
    negatives: tuple[str, ...] | None = None
    text_pair: str = ""
    words: tuple[tuple[int, int], ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def completions(self) -> "tuple[Example, ...]":
        """The row once for each of its completions, the better one first."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def asked(self) -> tuple[Mapping[str, Any], ...]:
        """The messages before the first one that carries loss."""
        silent = takewhile(lambda one: one["role"] != "assistant" or one.get("weight", 1) == 0, self.messages)
        return tuple(silent)

    @property
    def prefers(self) -> bool:
        """Whether the row says which of two completions is better, or whether one is good."""
        return self.rejected is not None or self.desirable is not None

    @property
    def labelled(self) -> bool:
        """Whether the target is labels or a number, not text."""
        return bool(self.label or self.tags) or self.labels is not None or self.number is not None

    @property
    def names(self) -> tuple[str, ...]:
        """All labels."""
        if self.tags:
            return tuple(sorted(set(self.tags)))
        return self.labels if self.labels is not None else (self.label,) if self.label else ()

    @property
    def target_text(self) -> str:
        """The target as one text: the label, all labels, the number, or the entities."""
        if self.tags:
            return "; ".join(f"{self._span(one)} [{one.kind}]" for one in self.entities) or "(none)"
        if self.labels is not None:
            return "; ".join(sorted(self.labels)) or "(none)"
        return self.label or ("" if self.number is None else f"{self.number:g}")

    @property
    def entities(self) -> tuple[Entity, ...]:
        """The entities of the words, in their order."""
        return tuple(TagScheme.of(self.names).entities(self.tags)) if self.tags else ()

    def _span(self, entity: Entity) -> str:
        return self.text[self.words[entity.start][0] : self.words[entity.stop - 1][1]]


END_OF_THOUGHT = "</think>"
SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class Columns:
    """The columns of a row that hold the parts of an example.

    Attributes:
        layout: what the examples are.
        names: part -> the file's column, or a path into one. The parts are the layout's, or those of Alpaca
            (`instruction`, ...), or, for a conversation, `prompt` and `completion` as texts or lists of messages.
        kind: what labels are.
        declared: whether the job says what they are.
        whole: whether all labels of the data set are whole numbers, some of them written as `1.0`.
        joined: whether a system message is put before the prompt: there is no other place for it in an encoder-decoder.
        split: a column that says which split a row is of, if there is one.
        parted: whether the job says that rows go by it.
        unread: columns that play no part.
    """

    layout: ExampleLayout
    names: Mapping[str, str]
    kind: ProblemType = ProblemType.SINGLE_LABEL
    declared: bool = False
    whole: bool = False
    joined: bool = False
    split: str | None = None
    parted: bool = False
    unread: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """All columns that are looked at, or paths into them."""
        return (*self.names.values(), *([self.split] if self.split else []))

    @property
    def roots(self) -> frozenset[str]:
        """The columns themselves, and the first parts of paths into them."""
        return frozenset({*self.read, *(path.partition(".")[0] for path in self.read)})

    @property
    def from_pairs(self) -> bool:
        """Whether pairs of texts are written as conversations."""
        return self.layout is ExampleLayout.CHAT and "prompt" in self.names and "tools" not in self.names

    @property
    def judged(self) -> bool:
        """Whether a row has one completion and says whether it is good."""
        return False

    def example(self, row: Row) -> Example | Fault:
        """Return the row as an example, or the first rule that it breaks."""
        try:
            if self.parted:
                split_of(row, self.split or "")
            return self._made(row)
        except Wrong as wrong:
            return Fault(row.line, wrong.code, wrong.message)

    def _made(self, row: Row) -> Example:
        """Return the row as an example.

        Raises:
            Wrong: it breaks a rule.
        """
        if "instruction" in self.names:
            return self._alpaca(row)
        if self.layout is ExampleLayout.CHAT:
            return self._conversation(row)
        if self.layout is ExampleLayout.SIMILAR:
            return self._similar(row)
        if self.layout.named and not self.layout.labelled:
            return self._words(row)
        return self._one_answer(row) if self._holds_messages(row) else self._texts(row)

    def _value(self, row: Row, part: str) -> Any:
        column = self.names[part]
        value = column_value(row.values, column)
        if value is ABSENT:
            raise self._missing(row, column)
        return number_or_value(column, value)

    def _missing(self, row: Row, column: str) -> Wrong:
        if row.values and not row.values.keys() & self.roots:
            seen = ", ".join(repr(name) for name in list(row.values)[:8])
            return Wrong(Code.MIXED_COLUMNS, f"there is no {column!r}; the row has {seen} instead")
        return Wrong(Code.MISSING_FIELD, f"there is no {column!r}")

    def _optional(self, row: Row, part: str) -> Any:
        column = self.names.get(part, part)
        value = column_value(row.values, column)
        return None if value is ABSENT else number_or_value(column, value)

    def _texts(self, row: Row) -> Example:
        if self.layout.labelled:
            text = text_of(self.names["text"], self._value(row, "text"))
            second = ""
            if self.layout is ExampleLayout.LABELLED_PAIR:
                second = text_of(self.names["text_pair"], self._value(row, "text_pair"))
            found = target(self.names["label"], self._value(row, "label"), self.kind, self.declared)
            if self.whole:
                found = replace(found, names=tuple(whole_number(name) for name in found.names))
            return replace(_labelled(row.line, text, found, self.kind), text_pair=second)
        values = {part: text_of(self.names[part], self._value(row, part)) for part in self.layout.parts}
        if self.layout is ExampleLayout.PAIR:
            values["completion"] = self._reasoned(row, values["completion"])
        text = values.get("text", values.get("prompt", ""))
        if "system" in self.names and (system := self._text_or_nothing(row, "system")).strip():
            if not self.joined:
                raise self._no_place("system")
            text = f"{system}\n\n{text}"
        return Example(row.line, text, completion=values.get("completion", ""))

    def _similar(self, row: Row) -> Example:
        anchor, column = text_of(self.names["anchor"], self._value(row, "anchor")), self.names["positive"]
        positive = list_of(column, self._value(row, "positive"))
        if isinstance(positive, list):
            if len(positive) != 1:
                raise Wrong(Code.SEVERAL_POSITIVES, f"{column!r} holds {len(positive)} texts; a row has one positive")
            [positive] = positive
        negatives = [text for part in self.names if part.startswith("negative") for text in self._negatives(row, part)]
        return Example(row.line, anchor, completion=text_of(column, positive), negatives=tuple(negatives))

    def _negatives(self, row: Row, part: str) -> list[str]:
        """Return the negatives of one column: a text, a list of texts, or nothing."""
        column = self.names[part]
        value = list_of(column, self._optional(row, part))
        if value is None or value == "":
            return []
        return [text_of(column, text) for text in (value if isinstance(value, list) else [value])]

    def _words(self, row: Row) -> Example:
        if self.layout is ExampleLayout.LINES:
            found = tagged_lines(text_of(self.names["lines"], self._value(row, "lines")))
            return Example(row.line, found.text, words=found.words, tags=found.tags)
        first, second = self.layout.parts
        columns = (self.names[first], self.names[second])
        given = list_of(columns[1], self._value(row, second))
        if self.layout is ExampleLayout.WORDS:
            found = tagged_words(columns, list_of(columns[0], self._value(row, first)), given)
        else:
            found = tagged_spans(columns, text_of(columns[0], self._value(row, first)), given)
        return Example(row.line, found.text, words=found.words, tags=found.tags)

    def _conversation(self, row: Row) -> Example:
        if "messages" in self.names:
            column = self.names["messages"]
            messages = conversation.checked_messages(column, list_of(column, self._value(row, "messages")))
        elif "answers" in self.names:
            query = text_of(self.names["query"], self._value(row, "query"))
            messages = xlam.xlam_messages(query, self.names["answers"], self._value(row, "answers"))
        else:
            messages = self._asked_and_answered(row)
        tools = self._optional(row, "tools") if "tools" in self.names else None
        if not tools and row.values.get("functions"):
            raise Wrong(Code.OLD_CALLS, "'functions' describes tools as OpenAI's rows did before tool calls")
        described = (xlam.xlam_tools if "answers" in self.names else conversation.tools_of)("tools", tools)
        check_tool_use(self.names.get("messages", "messages"), messages, described)
        return Example(row.line, "", messages=self._with_system(row, messages), tools=described)

    def _asked_and_answered(self, row: Row) -> tuple[conversation.Message, ...]:
        prompt, completion = self._value(row, "prompt"), self._value(row, "completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            asked, answer = text_of(self.names["prompt"], prompt), text_of(self.names["completion"], completion)
            # a leading blank parts a completion from the prompt that it follows
            answer = self._reasoned(row, answer).lstrip()
            return ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
        return conversation.prompt_and_completion(prompt, completion, self.names)

    def _reasoned(self, row: Row, answer: str) -> str:
        """Return an answer after the reasoning of a separate column, as models that think write it."""
        reasoning = self._text_or_nothing(row, "reasoning").strip() if "reasoning" in self.names else ""
        if not reasoning or END_OF_THOUGHT in answer:
            return answer
        return f"<think>\n{reasoning}\n{END_OF_THOUGHT}\n\n{answer.lstrip()}"

    def _with_system(self, row: Row, messages: tuple[conversation.Message, ...]) -> tuple[conversation.Message, ...]:
        """Return the conversation with the system message of a separate column before it."""
        system = self._text_or_nothing(row, "system") if "system" in self.names else ""
        first = messages[0]
        if not system.strip() or (first["role"] in SYSTEM_ROLES and first.get("content") == system):
            return messages
        if first["role"] in SYSTEM_ROLES:
            column = self.names["system"]
            raise Wrong(
                Code.INVALID_MESSAGE,
                f"{column!r} holds a system message, and the first message is a system message, too",
            )
        return ({"role": "system", "content": system}, *messages)

    def _no_place(self, column: str) -> Wrong:
        message = f"{column!r} is given, and the model has no chat template to write it: set spec.dataset.chatTemplate"
        return Wrong(Code.INVALID_MESSAGE, message)

    def _holds_messages(self, row: Row) -> bool:
        return "messages" in self.names or isinstance(column_value(row.values, self.names.get("prompt", "")), list)

    def _one_answer(self, row: Row) -> Example:
        """Return a conversation as one text and one answer, for a model that has no other form."""
        messages = self._conversation(row).messages
        answers = sum(message["role"] == "assistant" for message in messages)
        if answers > 1 or messages[-1]["role"] != "assistant":
            seen = f"{answers} answers" if answers > 1 else "no answer at its end"
            raise Wrong(Code.SEVERAL_ANSWERS, f"the conversation has {seen}; an encoder-decoder learns one of each row")
        prompt = "\n\n".join(message.get("content", "") for message in messages[:-1])
        return Example(row.line, prompt, completion=messages[-1].get("content", ""))

    def _alpaca(self, row: Row) -> Example:
        instruction = text_of(self.names["instruction"], self._value(row, "instruction"))
        output = text_of(self.names["output"], self._value(row, "output"))
        given, system = (self._text_or_nothing(row, part) for part in ("input", "system"))
        history = self._optional(row, "history")
        if self.layout is ExampleLayout.CHAT:
            return Example(row.line, "", messages=alpaca.alpaca_messages(instruction, given, output, system, history))
        if history or system.strip():
            raise self._no_place("history" if history else "system")
        return Example(row.line, alpaca.prompt(instruction, given), completion=f"\n{output}")

    def _text_or_nothing(self, row: Row, part: str) -> str:
        value = self._optional(row, part)
        if value is None:
            return ""
        if not isinstance(value, str):
            column = self.names.get(part, part)
            raise Wrong(Code.WRONG_TYPE, f"{column!r} is {json_type(value)}; it must be a string")
        return encodable(self.names.get(part, part), value)


def split_of(row: Row, column: str) -> RowSplit:
    """Return the split that a row says it is of.

    Raises:
        Wrong: it has none.
    """
    value = column_value(row.values, column)
    split = value.strip().lower() if isinstance(value, str) else ""
    if split in TRAINED:
        return RowSplit.TRAIN
    if split in HELD_OUT:
        return RowSplit.TEST if split in TESTED else RowSplit.VALIDATION
    seen = "missing" if value is ABSENT else repr(value)[:40]
    raise Wrong(Code.NO_SPLIT, f"{column!r} is {seen}; a split is train, validation or test")


def _labelled(line: int, text: str, found: Target, kind: ProblemType) -> Example:
    if kind is ProblemType.MULTI_LABEL:
        return Example(line, text, labels=found.names)
    return Example(line, text, found.names[0] if found.names else "", number=found.number)


def examples(records: Iterator[Record], columns: Columns) -> Iterator[Example | Fault]:
    """Yield every record as an example or a fault; marks between the documents of a file are no records."""
    for record in records:
        if isinstance(record, Row) and columns.layout is ExampleLayout.LINES and is_document_mark(record.values):
            continue
        yield columns.example(record) if isinstance(record, Row) else record
