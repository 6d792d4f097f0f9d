"""Conversations to text with a chat template, and which characters of it are the assistant's.

The environment is the one that transformers renders in (`transformers.utils.chat_template_utils`): the same sandbox, as
a template is a program from the hub; the same filters; the `{% generation %}` block. Two things differ. Compiled
templates are kept, and rows are not copied first, because they are plain JSON already: a fifth of the time. And today's
date is always the same day: the same data must give the same tokens tomorrow.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from finetune_trainer.prepare.data.conversation import REASONING

TODAY = datetime(2024, 7, 26, tzinfo=UTC)  # the date that Llama 3.1's template has by default
OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters: Unicode keeps them for use within a program

Message = Mapping[str, Any]


class TemplateError(ValueError):
    """A template cannot be compiled, or refuses a conversation; the message is its own."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        spans: character ranges [start, end) of its `{% generation %}` blocks, in order.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Renderer:
    """A template, compiled.

    Attributes:
        specials: special tokens that the template reads, such as `bos_token`.
    """

    template: str
    specials: Mapping[str, Any]

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), add_generation_prompt: bool = False
    ) -> Rendered:
        """Render a conversation.

        Raises:
            TemplateError: the template refuses it.
        """
        compiled = _compiled(self.template)
        try:
            text = compiled.render(
                **{
                    **self.specials,
                    "messages": [_plain(message) for message in messages],
                    "tools": list(tools) or None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # whatever a program from the hub does with a row that it does not expect
            raise TemplateError(_reason(error)) from error
        return _without_marks(text)


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _plain(message: Message) -> dict[str, Any]:
    """Remove the weight, which templates must not see; give reasoning under each of its names."""
    kept = {name: value for name, value in message.items() if name != "weight"}
    reasoning = next((kept[name] for name in REASONING if name in kept), None)
    return kept if reasoning is None else kept | dict.fromkeys(REASONING, reasoning)


def _without_marks(text: str) -> Rendered:
    if OPEN not in text:
        return Rendered(text)
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for part in text.split(OPEN):
        inside, closed, outside = part.partition(CLOSE)
        if closed:
            spans.append((length, length + len(inside)))
        outside = outside.replace(CLOSE, "")
        parts += (inside, outside)
        length += len(inside) + len(outside)
    return Rendered("".join(parts), tuple(spans))


def check_template(template: str) -> None:
    """Raise TemplateError if a template cannot be compiled."""
    _compiled(template)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise, strftime_now=_strftime_now, dict=_TemplateDict(), namespace=_TemplateNamespace
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {error.message}") from error


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant says, between two marks."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


class _TemplateDict:
    """`dict` of templates: to call only, so that no attribute of the class can be reached."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """`namespace` of templates, without underscored names: they could lead to Python's internals."""

    def __init__(*args: Any, **values: Any) -> None:
        self, *given = args
        attributes = dict(*given, **values)
        for name in attributes:
            _TemplateNamespace._checked(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _TemplateNamespace._checked(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _checked(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not set {name!r}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return TODAY.strftime(pattern)
