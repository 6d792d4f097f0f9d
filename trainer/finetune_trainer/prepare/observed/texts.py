"""The two sides of an example of any layout: what a model is given and what it learns to answer."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from finetune_trainer.prepare.data import alpaca
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Remark, RemarkCode


class Sides(NamedTuple):
    """Text given and text learnt.

    Attributes:
        given: a prompt, the text of a labelled row, or what everybody but the assistant says. A message of the
            assistant with `weight: 0` is given, too: it carries no loss.
        learnt: the completion, the text of a language model's row, or the assistant's words; empty with a label.
        last: the assistant's last message; `learnt` elsewhere. None where the assistant says nothing that is learnt.
        system: the system messages, apart: the same in many rows, they would make these look alike.
        tools: descriptions of tools as JSON; with them the same question has another answer.
        acts: whether the last message calls tools: that is an answer, however few its words.
    """

    given: str
    learnt: str
    last: str | None
    system: str = ""
    tools: str = ""
    acts: bool = False

    @property
    def whole(self) -> str:
        """Both, as one text."""
        return f"{self.given}\n{self.learnt}" if self.given and self.learnt else self.given or self.learnt

    @property
    def setting(self) -> bytes:
        """System message and tools of a conversation: two rows that differ here are two tasks."""
        return f"{self.system}\0{self.tools}".encode("utf-8", "replace") if self.system or self.tools else b""


def sides(example: Example, labelled: bool) -> Sides:
    """Return the sides of an example.

    Args:
        labelled: whether its target is a label.
    """
    if example.messages:
        given: list[str] = []
        learnt: list[str] = []
        system: list[str] = []
        acts = False
        for message in example.messages:
            role = message.get("role")
            trained = role == "assistant" and message.get("weight", 1) != 0
            side = learnt if trained else system if role in ("system", "developer") else given
            side.append(message_text(message))
            acts = bool(calls(message)) if trained else acts
        tools = json.dumps(example.tools, sort_keys=True, default=str) if example.tools else ""
        last = learnt[-1] if learnt else None
        return Sides("\n".join(given), "\n".join(learnt), last, "\n".join(system), tools, acts)
    if example.negatives is not None:
        return Sides(example.text, "\n".join(compared_texts(example)), None)
    if labelled:
        return Sides(f"{example.text}\n{example.text_pair}" if example.text_pair else example.text, "", "")
    if example.completion:
        return Sides(alpaca.asked(example.text), example.completion, example.completion)
    return Sides("", example.text, example.text)


def compared_texts(example: Example) -> tuple[str, ...]:
    """Return the texts that an anchor is compared with: its positive, then its negatives."""
    return (example.completion, *(example.negatives or ()))


def contradictions(example: Example) -> tuple[Remark, ...]:
    """Return remarks on a row whose texts contradict what they are there for; white space at the ends is ignored."""
    positive, remarks = example.completion.strip(), []
    if positive == example.text.strip():
        remarks.append(Remark(RemarkCode.SAME_POSITIVE, "", positive, example.text))
    if any(text.strip() == positive for text in example.negatives or ()):
        remarks.append(Remark(RemarkCode.SAME_NEGATIVE, "", positive, positive))
    return tuple(remarks)


def message_text(message: Mapping[str, Any]) -> str:
    """Return reasoning, text and calls of tools of a message, one below the other."""
    value = message.get("content")
    if isinstance(value, list):  # parts: {"type": "text", "text": ...}
        value = "\n".join(
            part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    reasoning = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    parts = [reasoning if isinstance(reasoning, str) else "", value if isinstance(value, str) else "", calls(message)]
    return "\n".join(part for part in parts if part)


def calls(message: Mapping[str, Any]) -> str:
    """Return the calls of tools in a message, `get_weather({"city": "Bonn"})`, one on a line; empty without any."""
    own = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if not isinstance(own, list | tuple):
        return ""
    lines = []
    for call in own:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments", "")
            written = (
                arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
            )
            lines.append(f"{function.get('name', '')}({written})")
    return "\n".join(lines)
