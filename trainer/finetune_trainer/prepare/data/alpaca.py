"""Alpaca rows (instruction, input, output): a conversation where the model has a chat template, else prompt and answer.

The prompt is that of Stanford Alpaca (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca, "Data release").
"""

import re
from typing import Any

from finetune_trainer.prepare.data.conversation import Message, Wrong
from finetune_trainer.prepare.data.formats import Code, json_type

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def prompt(instruction: str, given: str) -> str:
    """Return Alpaca's prompt; the answer follows it after a line break."""
    if given.strip():
        return WITH_INPUT.format(instruction=instruction, input=given)
    return WITHOUT_INPUT.format(instruction=instruction)


def alpaca_messages(instruction: str, given: str, output: str, system: str, history: Any) -> tuple[Message, ...]:
    """Return the row as messages; `history` has earlier turns, as pairs of question and answer.

    Raises:
        Wrong: the history is not a list of pairs.
    """
    messages: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    for index, turn in enumerate(history or ()):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise Wrong(Code.INVALID_MESSAGE, f"history[{index}] is {json_type(turn)}; it must be two strings")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    return (*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": output})


def asked(text: str) -> str:
    """Return what was asked of a prompt that `prompt` made: instruction and input; any other text as it is."""
    for frame in (WITH_INPUT, WITHOUT_INPUT):
        head, *between, tail = re.split(r"\{\w+\}", frame)
        if text.startswith(head) and text.endswith(tail):
            inner = text[len(head) : len(text) - len(tail)]
            if not between:
                return inner
            if between[0] in inner:
                return inner.replace(between[0], "\n\n", 1)
    return text
