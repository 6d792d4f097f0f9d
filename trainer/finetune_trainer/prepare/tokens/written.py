"""What a row carries and the chat template does not write, found by rendering it with a part changed.

A template is a program: it may pass over a role, a field or the tools without a word. If the text stays the same when a
part of a row changes, that part is not in it. Rows of one structure are compared once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.prepare.data.conversation import REASONING
from finetune_trainer.prepare.observed.encoded import Remark, RemarkCode
from finetune_trainer.prepare.tokens.dialect import MARK
from finetune_trainer.prepare.tokens.render import Message, TemplateError
from finetune_trainer.prepare.tokens.spans import NotPrefixConsistentError, RenderedText, Speaker

END_OF_THOUGHT = "</think>"
EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")
BESIDE = frozenset({"role", "weight", "id", "type", "tool_call_id"})  # say who speaks and how parts belong together
REMEMBERED = 50_000  # structures of rows

Kind = tuple[Any, ...]


@dataclass(frozen=True)
class Verdict:
    """What the template does not write of rows with one structure.

    Attributes:
        lost: what was to be read or learnt, such as `the content of messages[0]`: such a row is refused.
        remarks: further remarks on each.
    """

    lost: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()


NOTHING = Verdict()


@dataclass
class Comparison:
    """A comparison of rows with the text that the template makes of them.

    Attributes:
        speaker: renders rows as they are trained.
        inference: the same with the template that goes with the model.
    """

    speaker: Speaker
    inference: Speaker
    _rows: dict[Kind, Verdict] = field(default_factory=dict)
    _parts: dict[Kind, tuple[str, tuple[Remark, ...]] | None] = field(default_factory=dict)

    def __call__(self, messages: Sequence[Message], tools: Sequence[Any], speech: RenderedText) -> tuple[Verdict, bool]:
        """Return what the text lacks of a row, and whether it is the first row of its structure."""
        structure = _structure(messages, tools)
        if (known := self._rows.get(structure)) is not None:
            return known, False
        lost: list[str] = []
        remarks: list[Remark] = []
        for kind, where, changed in self._changes(messages, tools):
            if kind not in self._parts:
                self._parts[kind] = self._compared(kind, messages, tools, changed, speech)
            if (found := self._parts[kind]) is not None:
                sentence, own = found
                lost += [sentence.format(where)] if sentence else []
                remarks += own
        if EMPTY_THOUGHT.search("".join(speech.text[start:end] for start, end in speech.spans)) and not any(
            EMPTY_THOUGHT.search(message.get("content") or "") for message in messages
        ):
            remarks.append(Remark(RemarkCode.EMPTY_REASONING))
        verdict = Verdict(tuple(lost), tuple(dict.fromkeys(remarks))) if lost or remarks else NOTHING
        if len(self._rows) < REMEMBERED:
            self._rows[structure] = verdict
        return verdict, True

    def _changes(
        self, messages: Sequence[Message], tools: Sequence[Any]
    ) -> Iterator[tuple[Kind, str, tuple[Sequence[Message], Sequence[Any]]]]:
        """Yield (kind of the part, its place, the row with it changed) of each part of a row."""
        last_user = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
        for at, message in enumerate(messages):
            around = (
                message["role"],
                messages[at - 1]["role"] if at else "",
                messages[at + 1]["role"] if at + 1 < len(messages) else "",
                at < last_user,
                bool(message.get("tool_calls")),
                message.get("weight", 1) != 0,
                bool(tools),
            )
            for part, changed in _changed(message):
                row = [*messages[:at], changed, *messages[at + 1 :]]
                yield (part, *around), f"messages[{at}]", (row, tools)
        if tools:
            roles = tuple(dict.fromkeys(message["role"] for message in messages))
            yield ("tools", *roles), "the row", (messages, ())

    def _compared(
        self,
        kind: Kind,
        messages: Sequence[Message],
        tools: Sequence[Any],
        changed: tuple[Sequence[Message], Sequence[Any]],
        speech: RenderedText,
    ) -> tuple[str, tuple[Remark, ...]] | None:
        part, role = kind[0], kind[1]
        if self._reads(self.speaker, changed, speech.text):
            dropped = (
                part in (*REASONING, END_OF_THOUGHT)
                and kind[4]
                and not self._reads(self.inference, changed, None, messages, tools)
            )
            return ("", (Remark(RemarkCode.REASONING_NOT_KEPT),)) if dropped else None
        name = "the reasoning in the content" if part == END_OF_THOUGHT else f"the {part}"
        learnt = role == "assistant" and kind[6] and (part in REASONING or part in ("tool_calls", END_OF_THOUGHT))
        if learnt or part in ("content", "tools"):
            return f"{name} of {{}} ({role})" if part != "tools" else "the tools of {}", ()
        return "", (Remark(RemarkCode.NOT_WRITTEN, f"{part!r} of {role} messages"),)

    def _reads(
        self,
        speaker: Speaker,
        changed: tuple[Sequence[Message], Sequence[Any]],
        text: str | None,
        messages: Sequence[Message] = (),
        tools: Sequence[Any] = (),
    ) -> bool:
        """Return whether a template makes another text of a changed row; one that refuses the row has read it."""
        try:
            if text is None:
                text = speaker.rendered(messages, tools).text
            return speaker.rendered(*changed).text != text
        except (TemplateError, NotPrefixConsistentError):
            return True


def _structure(messages: Sequence[Message], tools: Sequence[Any]) -> Kind:
    return (bool(tools), *map(_shape, messages))


def _shape(message: Message) -> Any:
    content = message.get("content") or ""
    if len(message) == 2 and END_OF_THOUGHT not in content:
        return message["role"]
    weight = message.get("weight", 1)
    return (message["role"], weight, END_OF_THOUGHT in content, len(message.get("tool_calls") or ()), *message)


def _changed(message: Message) -> Iterator[tuple[str, Message]]:
    """Yield (name, the message with it changed) of each part that has a value."""
    for name, value in message.items():
        if name in BESIDE or value in (None, "", [], {}):
            continue
        if name == "tool_calls":
            yield name, {**message, name: [_other_call(call) for call in value]}
        elif isinstance(value, str):
            yield name, {**message, name: f"{value} {MARK}"}
            if name == "content" and END_OF_THOUGHT in value and message["role"] == "assistant":
                before, end, after = value.partition(END_OF_THOUGHT)
                yield END_OF_THOUGHT, {**message, name: f"{before} {MARK}\n{end}{after}"}
        else:
            yield name, {other: one for other, one in message.items() if other != name}


def _other_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = call.get("function", call)
    arguments = {**(inner.get("arguments") or {}), MARK: MARK}
    other = {**inner, "arguments": arguments}
    return {**call, "function": other} if "function" in call else other
