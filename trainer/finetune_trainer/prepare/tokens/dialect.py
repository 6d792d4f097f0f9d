"""The forms that a template takes where a message has several, found by rendering a conversation in each form.

Templates differ in four things that no standard settles: whether they know the role `developer`, whether content is a
text or a list of parts, whether the arguments of a tool call are an object or JSON text, and what replaces the
content of a message that only calls tools.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from typing import Any

from finetune_trainer.prepare.tokens.render import Message, Renderer, TemplateError

MARK = "Zq7xk"  # a word that no template writes by itself
DEVELOPER = "developer"
CALL = {"id": "Zq7xk0001", "type": "function", "function": {"name": f"call{MARK}", "arguments": {f"key{MARK}": "v"}}}
ASKED = {"role": "user", "content": "a question"}
ANSWERED = {"role": "assistant", "content": "an answer"}
RESULT = {"role": "tool", "tool_call_id": "Zq7xk0001", "name": f"call{MARK}", "content": "a result"}


class Content(StrEnum):
    """The form of a message's content; models that see images often take parts only."""

    TEXT = "text"
    PARTS = "parts"


class Arguments(StrEnum):
    """The form of a tool call's arguments."""

    OBJECT = "object"
    TEXT = "JSON text"


class Blank(StrEnum):
    """What replaces the content of a message that only calls tools."""

    EMPTY = "empty"
    MISSING = "missing"
    NULL = "null"


@dataclass(frozen=True)
class Dialect:
    """What a template takes.

    Attributes:
        developer: the role that messages of the role `developer` get.
    """

    developer: str = DEVELOPER
    content: Content = Content.TEXT
    arguments: Arguments = Arguments.OBJECT
    blank: Blank = Blank.EMPTY

    def __call__(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Put a conversation into the forms that the template takes; most are in them already."""
        if self.content is Content.TEXT and all(
            "tool_calls" not in message and message["role"] != DEVELOPER for message in messages
        ):
            return messages
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        if message["role"] == DEVELOPER:
            message = {**message, "role": self.developer}
        if self.content is Content.PARTS and isinstance(message.get("content"), str):
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        if "tool_calls" not in message:
            return message
        made = {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
        if message.get("content") is None:
            made.pop("content", None)
            if self.blank is not Blank.MISSING:
                made["content"] = "" if self.blank is Blank.EMPTY else None
        return made

    def _call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.arguments is Arguments.OBJECT:
            return call
        inner = call.get("function", call)
        written = {**inner, "arguments": json.dumps(inner.get("arguments") or {}, ensure_ascii=False)}
        return {**call, "function": written} if "function" in call else written


STANDARD = Dialect()


def dialect_of(renderer: Renderer) -> Dialect:
    """Return the forms that a template takes; the standard ones where it takes none."""
    content = next((form for form in Content if _takes(renderer, Dialect(content=form), ASKED["role"])), Content.TEXT)
    plain = Dialect(content=content)
    # where neither is written, the comparison with what was written refuses the rows
    known = next((role for role in (DEVELOPER, "system") if _takes(renderer, plain, role)), DEVELOPER)
    for arguments, blank in product(Arguments, Blank):
        dialect = Dialect(known, content, arguments, blank)
        if any(_is_written(renderer, dialect, messages) for messages in _calls()):
            return dialect
    return Dialect(known, content)


def _takes(renderer: Renderer, dialect: Dialect, role: str) -> bool:
    """Return whether a template writes a message of a role at the beginning of a conversation."""
    before = [] if role == ASKED["role"] else [ASKED]
    form = replace(dialect, developer=role)
    try:
        return MARK in renderer(form([{"role": role, "content": MARK}, *before, ANSWERED])).text
    except TemplateError:
        return False


def _calls() -> Iterator[list[Message]]:
    """Yield conversations with a tool call; some templates need its result, and some do not know results."""
    called: Message = {"role": "assistant", "tool_calls": [CALL]}
    yield [ASKED, called, RESULT, ANSWERED]
    yield [ASKED, called]


def _is_written(renderer: Renderer, dialect: Dialect, messages: Sequence[Message]) -> bool:
    try:
        text = renderer(dialect(messages)).text
    except TemplateError:
        return False
    name, key = CALL["function"]["name"], f"key{MARK}"  # type: ignore[index]
    as_python, twice = f"'{key}'", f'\\"{key}'
    return name in text and key in text and as_python not in text and twice not in text
