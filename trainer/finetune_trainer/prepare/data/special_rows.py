"""How many rows of a data set call tools or reason, for people to see that they were recognised."""

from dataclasses import dataclass, field

from finetune_trainer.prepare.data.call_checks import described
from finetune_trainer.prepare.data.conversation import REASONING
from finetune_trainer.prepare.data.examples import END_OF_THOUGHT, Columns, Example

MOST_TOOLS = 10_000  # names that are remembered


@dataclass
class SpecialRows:
    """Rows of function calling and of reasoning.

    Attributes:
        calling: rows with tools, or with calls of some.
        calls, results: in these rows.
        tools: names of all tools.
        reasoning: rows that reason before an answer.
    """

    calling: int = 0
    calls: int = 0
    results: int = 0
    reasoning: int = 0
    tools: set[str] = field(default_factory=set)

    def see(self, example: Example) -> None:
        """Count one row."""
        reasons = END_OF_THOUGHT in example.completion
        calls = results = 0
        for message in example.messages:
            if message["role"] == "tool":
                results += 1
            elif message["role"] == "assistant":
                calls += len(message.get("tool_calls") or ())
                reasons = reasons or END_OF_THOUGHT in (message.get("content") or "")
                reasons = reasons or any(name in message for name in REASONING)
        self.reasoning += reasons
        if example.tools or calls:
            self.calling += 1
            self.calls += calls
            self.results += results
            if len(self.tools) < MOST_TOOLS:
                self.tools.update(name for name, _ in described(example.tools))

    def merge(self, other: "SpecialRows") -> None:
        """Take in what was counted of other rows."""
        self.calling += other.calling
        self.calls += other.calls
        self.results += other.results
        self.reasoning += other.reasoning
        self.tools |= other.tools

    def sentences(self, columns: Columns) -> list[str]:
        """Return what was recognised, as `function calling (ShareGPT): 812 rows with 3 tools, 900 calls, 850 results`.

        Args:
            columns: of the first file.
        """
        found = []
        if self.calling:
            counts = ((len(self.tools), "tool"), (self.calls, "call"), (self.results, "result"))
            counted = ", ".join(f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
            found.append(f"function calling ({_form(columns)}): {_rows(self.calling)} with {counted}")
        if self.reasoning:
            column = columns.names.get("reasoning")
            source = f"in the column {column!r}, written as <think>" if column else "in the messages"
            found.append(f"reasoning: {_rows(self.reasoning)} reason before the answer ({source})")
        return found


def _form(columns: Columns) -> str:
    if "answers" in columns.names:
        return "xLAM"
    return "ShareGPT" if columns.names.get("messages") == "conversations" else "OpenAI"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
