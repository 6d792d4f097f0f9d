"""Rows of preference tuning in all their forms, to one: a prompt, and one or two completions of it.

Two completions have a common prompt, which is a column of its own, or the beginning that both conversations share.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import takewhile
from typing import Any

from finetune_trainer.prepare.data import conversation
from finetune_trainer.prepare.data.conversation import Message, Wrong
from finetune_trainer.prepare.data.examples import SYSTEM_ROLES
from finetune_trainer.prepare.data.formats import Code, json_type

GOOD = frozenset({"true", "1", "1.0", "+1", "yes", "good", "desirable", "chosen", "preferred", "positive"})
BAD = frozenset({"false", "0", "0.0", "-1", "-1.0", "no", "bad", "undesirable", "rejected", "dispreferred", "negative"})
UP = frozenset({"up", "thumbs_up", "thumbs-up", "thumbs up", "thumbsup", "upvote", "like", "liked", "👍"})
DOWN = frozenset(
    {"down", "thumbs_down", "thumbs-down", "thumbs down", "thumbsdown", "downvote", "dislike", "disliked", "👎"}
)
# Anthropic's HH-RLHF writes turns so (arXiv 2204.05862): a blank line, who speaks, a colon
TURN = re.compile(r"(?:\A\s*|\n\s*\n)(Human|Assistant):[ \t]*")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Completions(StrEnum):
    """How the completions of a data set become rows of tokens."""

    PAIRED = "a pair is one row of two sequences"
    UNPAIRED = "a pair becomes two rows with a label each"
    SINGLE = "a row has one completion and a label"

    @property
    def judged(self) -> bool:
        """Whether a row of tokens has a label."""
        return self is not Completions.PAIRED


@dataclass(frozen=True, slots=True)
class PairTexts:
    """A prompt and two completions as texts."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class PairMessages:
    """A prompt and two completions as messages."""

    prompt: Sequence[Message]
    chosen: Sequence[Message]
    rejected: Sequence[Message]

    def conversations(self, names: Mapping[str, str]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """Return the chosen and the rejected conversation; only their completions carry loss.

        Raises:
            Wrong: as of `conversation.prompt_and_completion`, or a completion does not end with an answer.
        """
        return completed(self.prompt, self.chosen, names["chosen"]), completed(
            self.prompt, self.rejected, names["rejected"]
        )


def completed(prompt: Sequence[Message], completion: Sequence[Message], column: str) -> tuple[Message, ...]:
    """Return a conversation of which only the completion carries loss.

    Raises:
        Wrong: the completion does not begin and end with an answer, or the messages are out of order.
    """
    for place, message in (("begins", completion[0]), ("ends", completion[-1])):
        if message["role"] != "assistant":
            seen = f"the completion in {column!r} {place} with a message of role {message['role']}"
            raise Wrong(Code.WRONG_ROLE_ORDER, f"{seen}; a completion {place} with an assistant's message")
    before = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in prompt]
    messages = (*before, *({name: one for name, one in each.items() if name != "weight"} for each in completion))
    conversation.check_order(column, messages)
    return messages


def pair_of(prompt: Any, chosen: Any, rejected: Any, names: Mapping[str, str]) -> PairTexts | PairMessages:
    """Return prompt and completions of a row.

    Args:
        prompt: a text, a list of messages or one message; None = the beginning that both completions share.
        chosen, rejected: texts, messages, or lists of messages: completions, or whole conversations.
        names: the columns of the parts, for messages.

    Raises:
        Wrong: a value has another type, or the conversations have no common beginning.
    """
    kinds = [isinstance(value, str) for value in (chosen, rejected)]
    if all(kinds):
        return _of_texts(prompt, chosen, rejected, names)
    if any(kinds):
        other = json_type(chosen if kinds[1] else rejected)
        raise Wrong(
            Code.WRONG_TYPE, f"{names['chosen']!r} and {names['rejected']!r} are of two types: a string and {other}"
        )
    better, worse = (conversation.messages_of(names[part], value) for part, value in _listed(chosen, rejected))
    if isinstance(prompt, str) and prompt.strip() and better[0]["role"] == "assistant":
        return PairMessages(question_of(prompt), better, worse)
    if isinstance(prompt, list):
        before = conversation.messages_of(names["prompt"], prompt)
        if better[0]["role"] == worse[0]["role"] == "assistant":
            return PairMessages(before, better, worse)
        if _begins_with(better, before) and _begins_with(worse, before):
            return PairMessages(before, better[len(before) :], worse[len(before) :])
        shared = _shared(better, worse, names)
        return replace(shared, prompt=_with_earlier(before, shared.prompt))
    if prompt is not None and not isinstance(prompt, str):
        raise _wrong_prompt(names["prompt"], prompt)
    return _shared(better, worse, names)  # a prompt beside whole conversations repeats their beginning


def _listed(chosen: Any, rejected: Any) -> list[tuple[str, Any]]:
    """Return both as lists: LLaMA-Factory and Axolotl write a completion as one message."""
    both = (("chosen", chosen), ("rejected", rejected))
    return [(part, [value] if isinstance(value, Mapping) else value) for part, value in both]


def _begins_with(messages: Sequence[Message], beginning: Sequence[Message]) -> bool:
    return len(messages) > len(beginning) and list(messages[: len(beginning)]) == list(beginning)


def _with_earlier(before: Sequence[Message], shared: Sequence[Message]) -> Sequence[Message]:
    """Return the beginning that conversations share, with what stands in the prompt alone: a system message, or the
    turns before the conversations."""
    if list(before[-len(shared) :]) == list(shared):
        return before
    if shared[0]["role"] != "user":
        return shared
    if before[-1]["role"] == "assistant":
        return (*before, *shared)
    return (*takewhile(lambda message: message["role"] in SYSTEM_ROLES, before), *shared)


def _shared(chosen: Sequence[Message], rejected: Sequence[Message], names: Mapping[str, str]) -> PairMessages:
    """Return the messages that both conversations begin with as the prompt."""
    equal = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    common = min(sum(1 for _ in equal), len(chosen) - 1, len(rejected) - 1)
    if common == 0:
        raise _no_common_prompt(names, "their first messages differ")
    if "user" in (chosen[common]["role"], rejected[common]["role"]):
        raise _no_common_prompt(names, f"they differ at message {common} already, which is a question")
    return PairMessages(chosen[:common], chosen[common:], rejected[common:])


def _no_common_prompt(names: Mapping[str, str], why: str) -> Wrong:
    both = f"{names['chosen']!r} and {names['rejected']!r}"
    return Wrong(Code.NO_COMMON_PROMPT, f"{both} do not answer one prompt: {why}")


def _of_texts(prompt: Any, chosen: str, rejected: str, names: Mapping[str, str]) -> PairTexts | PairMessages:
    if isinstance(prompt, list):
        before = conversation.messages_of(names["prompt"], prompt)
        return PairMessages(before, answered(chosen, names["chosen"]), answered(rejected, names["rejected"]))
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return _common(chosen, rejected, names)
    if not isinstance(prompt, str):
        raise _wrong_prompt(names["prompt"], prompt)
    answers = (after(prompt, text, names[part]) for part, text in (("chosen", chosen), ("rejected", rejected)))
    return PairTexts(prompt, *answers)


def after(prompt: str, completion: str, column: str) -> str:
    """Return a completion without the dialogue that it repeats, where the prompt is one as HH-RLHF writes it.

    Raises:
        Wrong: nothing follows the dialogue.
    """
    if not TURN.match(prompt) or not completion.startswith(prompt):
        return completion
    if not (answer := completion[len(prompt) :]).strip():
        raise Wrong(Code.EMPTY_TEXT, f"{column!r} is the prompt, and no answer follows")
    return answer


def _wrong_prompt(column: str, prompt: Any) -> Wrong:
    message = f"{column!r} is {json_type(prompt)}; it must be a string or a list of messages"
    return Wrong(Code.WRONG_TYPE, message)


def _common(chosen: str, rejected: str, names: Mapping[str, str]) -> PairTexts:
    """Return the beginning that two texts share as the prompt: up to the last common turn, or else whole words."""
    marks = [[(mark.end(), mark[1]) for mark in TURN.finditer(text)] for text in (chosen, rejected)]
    turns = [end for end, who in marks[0] if who == "Assistant" and (end, who) in marks[1]]
    common = [end for end in turns if chosen[:end] == rejected[:end]]
    if common:
        end = len(chosen[: common[-1]].rstrip(" \t"))
        return PairTexts(chosen[:end], chosen[end:], rejected[end:])
    if any(marks):
        raise _no_common_prompt(names, "the texts have no common turn of the assistant")
    end = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    end = min(end, len(chosen) - 1, len(rejected) - 1)
    while end > 0 and not (chosen[end].isspace() and rejected[end].isspace()):  # a word of neither is parted
        end -= 1
    if not chosen[:end].strip():
        raise _no_common_prompt(names, "the texts begin with different words")
    return PairTexts(chosen[:end], chosen[end:], rejected[end:])


def question_of(prompt: str) -> tuple[Message, ...]:
    """Return a prompt as messages: its turns where it is written as HH-RLHF writes them, or else one question."""
    turns = _turns(prompt)
    if turns and turns[-1]["role"] == "assistant" and not turns[-1]["content"] and len(turns) > 1:
        return turns[:-1]
    return ({"role": "user", "content": prompt},)


def answered(completion: str, column: str) -> tuple[Message, ...]:
    """Return a completion as a message.

    Raises:
        Wrong: it is empty.
    """
    text = completion.lstrip()  # a leading blank parts a completion from the prompt that it follows
    if not text:
        raise Wrong(Code.EMPTY_TEXT, f"{column!r} is empty")
    return ({"role": "assistant", "content": text},)


def spoken(pair: PairTexts, names: Mapping[str, str]) -> PairMessages:
    """Return a pair of texts as messages, for a chat template."""
    chosen, rejected = answered(pair.chosen, names["chosen"]), answered(pair.rejected, names["rejected"])
    return PairMessages(question_of(pair.prompt), chosen, rejected)


def _turns(text: str) -> tuple[Message, ...]:
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return ()
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return tuple(
        {"role": SPEAKERS[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    )


def last_answer(messages: Sequence[Message], column: str) -> tuple[Sequence[Message], Sequence[Message]]:
    """Return a judged conversation as its prompt and the messages after the last question.

    Raises:
        Wrong: it has no question, or no answer after it.
    """
    asked_at = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    if asked_at < 0 or asked_at + 1 == len(messages):
        why = "no question" if asked_at < 0 else "no answer after the last question"
        raise Wrong(Code.NO_ASSISTANT, f"{column!r} has {why}; the label judges the last answer")
    return messages[: asked_at + 1], messages[asked_at + 1 :]


def is_desirable(column: str, value: Any) -> bool:
    """Return whether a label says that a completion is desirable.

    Raises:
        Wrong: it says neither.
    """
    if value is None:
        raise Wrong(Code.NULL_VALUE, f"{column!r} is null; it must be true or false")
    word = str(value).strip().lower() if isinstance(value, (str, bool, int, float)) else ""
    if word in GOOD | UP:
        return True
    if word in BAD | DOWN:
        return False
    seen = repr(value)[:40] if isinstance(value, (str, int, float)) else json_type(value)
    raise Wrong(Code.LABEL_TYPE, f"{column!r} is {seen}; it must be true (desirable) or false (undesirable)")
