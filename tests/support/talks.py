"""Conversations of words that tell who says them, and the check that prepare learns what the assistant says.

For each: the tokens are those of the template's own rendering by transformers, loss stands on all that the assistant
says and on the end of its turn and on nothing else, and the tokens decode to the text; or the row is refused, with the
reason.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.prepare.data.conversation import REASONING, checked_messages
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.observed.encoded import Encoded, RemarkCode
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.render import TODAY
from finetune_trainer.prepare.tokens.spans import END_OF_TURN, NEXT_SPEAKER

LONGEST_FRAME = 220  # characters that a template writes around what the assistant says in one turn, at most
ENDS = (*END_OF_TURN, *NEXT_SPEAKER)


class Then:
    """Today's date for the rendering of transformers: the one that rows are rendered with."""

    now = staticmethod(lambda: TODAY)


class Talk:
    """Writes conversations of words that stand nowhere else: aw17 is the assistant's, ow17 another's, fn17 a tool."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._count = 0

    def conversation(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Messages and tools: some of all that rows may have."""
        chance = self._random.random
        messages = [{"role": self._random.choice(("system", "developer")), "content": self._words("ow")}]
        messages = messages if chance() < 0.4 else []
        with_tools, with_reasoning = chance() < 0.35, chance() < 0.3
        for _ in range(self._random.randint(1, 3)):
            messages.append({"role": "user", "content": self._words("ow")})
            if with_tools and chance() < 0.7:
                messages += self._call()
            messages.append(self._answer(with_reasoning))
        if chance() < 0.2:
            first = next(message for message in messages if message["role"] == "assistant")
            last = messages[-1]
            first["weight"] = 0 if first is not last else 1
        tool = {"name": "ow_tool", "description": self._words("ow"), "parameters": {"type": "object", "properties": {}}}
        return messages, [{"type": "function", "function": tool}] if with_tools else []

    def _answer(self, with_reasoning: bool) -> dict[str, Any]:
        answer = {"role": "assistant", "content": self._words("aw")}
        if with_reasoning and self._random.random() < 0.5:
            answer["reasoning_content"] = self._words("aw")
        elif with_reasoning:
            answer["content"] = f"<think>\n{self._words('aw')}\n</think>\n\n{answer['content']}"
        return answer

    def _call(self) -> list[dict[str, Any]]:
        number = f"{self._random.randrange(10**9):09}"
        arguments: Any = {self._word("aw"): self._words("aw"), self._word("aw"): self._random.choice([3, True, [1, 2]])}
        content: dict[str, Any] = self._random.choice([{}, {"content": None}, {"content": ""}])
        call = {"id": number, "type": "function", "function": {"name": self._word("fn"), "arguments": arguments}}
        return [
            {"role": "assistant", **content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": number, "content": self._words("ow")},
        ]

    def _words(self, whose: str) -> str:
        ends = ("", ".", " 紙 🙂", "\n- naïve")
        return " ".join(self._word(whose) for _ in range(self._random.randint(1, 6))) + self._random.choice(ends)

    def _word(self, whose: str) -> str:
        self._count += 1
        return f"{whose}{self._count}"


def check(
    of: Encoder, tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> str:
    """Check one conversation; "" if it is taken, else the code it is refused with.

    Args:
        of: the encoder of prepare, with a template.
        tokenizer: transformers' own, of the same files; its date is `TODAY` (`Then`).
    """
    row = Example(1, "", messages=checked_messages("messages", [dict(one) for one in messages]), tools=tuple(tools))
    (found,) = of([row])
    if isinstance(found, Fault):
        assert found.code in (Code.TEMPLATE_FAILED, Code.NOT_WRITTEN)
        assert len(found.message) > 40
        return found.code
    assert not [remark for remark in found.remarks if remark.code is RemarkCode.LEARNT_DIFFERS]
    # the template's own rendering
    assert of.template is not None
    given = [_by_each_name(message) for message in of.dialect(row.messages)]
    options = {"chat_template": of.template.training, "tools": list(tools) or None}
    text = tokenizer.apply_chat_template(given, tokenize=False, **options)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ended = found.ids.tolist()[len(ids) :]
    assert found.ids.tolist()[: len(ids)] == ids
    assert ended in ([], [tokenizer.eos_token_id])
    assert decoded(tokenizer, found.ids) == text + decoded(tokenizer, ended)
    # loss on what the assistant says, all of it, and on nothing else
    learnt, rest = learnt_and_rest(tokenizer, found)
    said = "\n".join(learnt)
    loud = "\n".join(map(repr, (one for one in row.messages if one["role"] == "assistant" and one.get("weight") != 0)))
    assert set(re.findall(r"aw\d+", said)) == set(re.findall(r"aw\d+", loud))
    assert set(re.findall(r"fn\d+", said)) == set(re.findall(r"fn\d+", loud))  # a result may repeat the name, unlearnt
    assert not re.search(r"ow(\d|_)", said)
    assert not set(re.findall(r"aw\d+", rest)) & set(re.findall(r"aw\d+", loud))
    # and no more of the template than what frames an answer, with its end
    for part in learnt:
        assert len(re.sub(r"aw\d+", "", part)) < LONGEST_FRAME + 8 * part.count("aw")
    assert learnt[-1].rstrip().endswith((*ENDS, tokenizer.eos_token)) or messages[-1].get("weight") == 0
    return ""


def _by_each_name(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if name != "weight"}
    return kept | {name: kept["reasoning_content"] for name in REASONING if "reasoning_content" in kept}


def learnt_and_rest(tokenizer: Any, row: Encoded) -> tuple[list[str], str]:
    """Return the text of each run of tokens that carry loss, and of all others."""
    assert row.trained is not None
    runs: list[list[int]] = [[]]
    for token, trained in zip(row.ids.tolist(), row.trained.tolist(), strict=True):
        if trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [decoded(tokenizer, run) for run in runs if run], decoded(tokenizer, row.ids[~row.trained])


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids as it is; some tokenizers take out spaces before full stops unless they are told."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
