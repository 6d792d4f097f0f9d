"""From a row to an example of preference tuning: a pair of completions, or one completion and a label."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_trainer.prepare.data import alpaca, conversation, preferences
from finetune_trainer.prepare.data.column_values import list_of, text_of
from finetune_trainer.prepare.data.conversation import Message, Wrong
from finetune_trainer.prepare.data.examples import Columns, Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Code, Row
from finetune_trainer.prepare.data.label_values import encodable


@dataclass(frozen=True)
class PreferenceColumns(Columns):
    """The columns of preferences: `chosen` and `rejected`, or `completion` (or `messages`) and `label`.

    The prompt is in `prompt`, in `instruction` and `input` (Alpaca), or in both completions.
    """

    @property
    def judged(self) -> bool:
        """Whether a row has one completion and says whether it is good."""
        return "label" in self.names

    def _made(self, row: Row) -> Example:
        return self._judged(row) if self.judged else self._pair(row)

    def _pair(self, row: Row) -> Example:
        chosen, rejected = (self._completion(row, part) for part in ("chosen", "rejected"))
        pair = preferences.pair_of(self._prompt(row), chosen, rejected, self.names)
        if self.layout is ExampleLayout.CHAT:
            messages = pair if isinstance(pair, preferences.PairMessages) else preferences.spoken(pair, self.names)
            better, worse = (self._chat(row, each) for each in messages.conversations(self.names))
            return replace(better, rejected=worse)
        if isinstance(pair, preferences.PairMessages):
            raise self._messages_among_texts("chosen")
        better, worse = (self._bare(row, pair.prompt, text) for text in (pair.chosen, pair.rejected))
        return replace(better, rejected=worse)

    def _judged(self, row: Row) -> Example:
        desirable = preferences.is_desirable(self.names["label"], self._value(row, "label"))
        if "messages" in self.names:
            column = self.names["messages"]
            whole = conversation.messages_of(column, list_of(column, self._value(row, "messages")))
            prompt, completion = preferences.last_answer(whole, column)
            return replace(self._chat(row, preferences.completed(prompt, completion, column)), desirable=desirable)
        column, asked, answer = self.names["completion"], self._prompt(row), self._completion(row, "completion")
        if isinstance(asked, str) and isinstance(answer, str):
            answer = preferences.after(asked, answer, column)
        if self.layout is not ExampleLayout.CHAT:
            if not isinstance(asked, str) or not isinstance(answer, str):
                raise self._messages_among_texts("completion")
            return replace(self._bare(row, text_of(self.names["prompt"], asked), answer), desirable=desirable)
        if isinstance(asked, list):
            prompt = conversation.messages_of(self.names["prompt"], asked)
        else:
            prompt = preferences.question_of(text_of(self.names["prompt"], asked))
        if isinstance(answer, str):
            completion = preferences.answered(answer, column)
        else:
            completion = conversation.messages_of(column, [answer] if isinstance(answer, Mapping) else answer)
        return replace(self._chat(row, preferences.completed(prompt, completion, column)), desirable=desirable)

    def _prompt(self, row: Row) -> Any:
        """Return the prompt: a text, a list, or None where the completions hold it."""
        if "instruction" in self.names:
            instruction = text_of(self.names["instruction"], self._value(row, "instruction"))
            given = self._text_or_nothing(row, "input")
            if self.layout is ExampleLayout.CHAT:
                return f"{instruction}\n\n{given}" if given.strip() else instruction
            return f"{alpaca.prompt(instruction, given)}\n"
        if "prompt" not in self.names:
            return None
        column = self.names["prompt"]
        prompt = list_of(column, self._value(row, "prompt"))
        if isinstance(prompt, Mapping):
            return [prompt]
        return encodable(column, prompt) if isinstance(prompt, str) else prompt

    def _completion(self, row: Row, part: str) -> Any:
        """Return a completion: a text, a message or a list of messages."""
        column = self.names[part]
        value = list_of(column, self._value(row, part))
        return value if isinstance(value, (list, Mapping)) else text_of(column, value)

    def _chat(self, row: Row, messages: tuple[Message, ...]) -> Example:
        tools = conversation.tools_of("tools", self._optional(row, "tools") if "tools" in self.names else None)
        return Example(row.line, "", messages=self._with_system(row, messages), tools=tools)

    def _bare(self, row: Row, prompt: str, completion: str) -> Example:
        if "system" in self.names and self._text_or_nothing(row, "system").strip():
            raise self._no_place("system")
        return Example(row.line, prompt, completion=completion)

    def _messages_among_texts(self, part: str) -> Wrong:
        return Wrong(Code.WRONG_TYPE, f"{self.names[part]!r} has messages, and the first row has a text")
