"""The two sides of an example, whatever its layout: what a model is given and what it is to say."""

from typing import Any, NamedTuple

from finetune_trainer.prepare.data.rows import Example


class Sides(NamedTuple):
    """Text given and text learnt.

    Attributes:
        given: a prompt, the text of a labelled row, or what everybody but the assistant says.
        learnt: the completion, the text of a language model's row, or the assistant's words; empty with a label.
        last: the assistant's last message; `learnt` elsewhere.
        system: the system messages, apart: the same in many rows, they would make these look alike.
    """

    given: str
    learnt: str
    last: str
    system: str = ""

    @property
    def whole(self) -> str:
        """Both, as one text."""
        return f"{self.given}\n{self.learnt}" if self.given and self.learnt else self.given or self.learnt


def sides(example: Example, labelled: bool) -> Sides:
    """The sides of an example.

    Args:
        labelled: whether its target is a label.
    """
    if example.messages:
        given: list[str] = []
        learnt: list[str] = []
        system: list[str] = []
        for message in example.messages:
            role = message.get("role")
            side = learnt if role == "assistant" else system if role in ("system", "developer") else given
            side.append(content(message))
        return Sides("\n".join(given), "\n".join(learnt), learnt[-1] if learnt else "", "\n".join(system))
    if labelled:
        return Sides(example.text, "", "")
    if example.completion:
        return Sides(example.text, example.completion, example.completion)
    return Sides("", example.text, example.text)


def content(message: Any) -> str:
    """The text of a message; of one that calls tools, their names."""
    value = message.get("content")
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # parts: {"type": "text", "text": ...}
        return "\n".join(part["text"] for part in value if isinstance(part, dict) and isinstance(part.get("text"), str))
    calls = message.get("tool_calls") or ()
    return " ".join(str(call.get("function", call).get("name", "")) for call in calls if isinstance(call, dict))
