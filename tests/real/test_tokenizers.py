"""Real tokenizers and chat templates of well-known models: prepare learns what the assistant says, and its end.

`tests/unit/test_chat_templates.py` has many more templates with one small tokenizer. Here the vocabularies, merges,
normalizers and special tokens are those of the models.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from finetune_api.errors import SpecError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.conversation import checked_messages
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Fault
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.templates import given_template
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, load_fast_tokenizer
from tests.real.packages import TOKENIZERS, present, tokenizer_folder
from tests.support.talks import Talk, Then, check, decoded, learnt_and_rest

TURNS = 60  # conversations of a tokenizer
# Llama 3's settings ask to take out spaces before full stops; transformers 5 says that it does not
pytestmark = pytest.mark.filterwarnings("ignore:Ignoring clean_up_tokenization_spaces")


@dataclass(frozen=True)
class Speaker:
    """A tokenizer with a template.

    Attributes:
        tokenizer: end of the package's name.
        template: as a job names it; empty for the one of the package.
        answer: what is learnt of an answer in mid-conversation.
        last: what is learnt of the last answer.
        ends: the tokens that an artifact stops at.
        taken: conversations of `TURNS` that the template writes whole, at least.
        strips: the template takes white space from the ends of an answer.
    """

    tokenizer: str
    template: str
    answer: str
    last: str
    ends: tuple[str, ...]
    taken: int
    strips: bool = False

    def __str__(self) -> str:
        return f"{self.tokenizer}-{self.template or 'own'}"

    @property
    def folder(self) -> Path:
        """Return where the package's files are."""
        return present(tokenizer_folder(self.tokenizer), f"the tokenizer {self.tokenizer}")


SPEAKERS = (
    Speaker("gemma3", "", "{}<end_of_turn>\n", "{}<end_of_turn>\n", ("<end_of_turn>",), 20, strips=True),
    Speaker("llama3_1", "", "{}<|eot_id|>", "{}<|eot_id|>", ("<|eot_id|>",), 25, strips=True),
    Speaker("llama3_1", "llama3_1", "{}<|eot_id|>", "{}<|eot_id|>", ("<|eot_id|>",), 25, strips=True),
    Speaker(
        "qwen3",
        "qwen3",
        "<think>\n\n</think>\n\n{}<|im_end|>\n",
        "<think>\n\n</think>\n\n{}<|im_end|>\n",
        ("<|im_end|>",),
        50,
    ),
    Speaker(
        "gptoss",
        "gptoss",
        "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
        ("<|return|>", "<|call|>"),
        40,
    ),
)
EACH = pytest.mark.parametrize("speaker", SPEAKERS, ids=str)


@cache
def plain(folder: Path) -> Any:
    """Return a tokenizer as transformers loads it; a large one takes seconds."""
    return AutoTokenizer.from_pretrained(folder)


@cache
def loaded(folder: Path) -> LoadedTokenizer:
    """Return a tokenizer as prepare loads it."""
    return load_fast_tokenizer(folder, Task.CAUSAL_LM)


@cache
def encoder(speaker: Speaker, work: Path) -> Encoder:
    """Return prepare's encoder for a job with this tokenizer and template."""
    named = {"chatTemplate": speaker.template} if speaker.template else {}
    spec = DatasetSpec.model_validate({"train": "file://train.jsonl", **named})
    template = given_template(spec.chat_template, {})
    return encoder_for(spec, Task.CAUSAL_LM, loaded(speaker.folder), ExampleLayout.CHAT, 100_000, template, work)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("definitions")


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Then)


def encode(of: Encoder, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> Encoded | Fault:
    row = Example(1, "", messages=checked_messages("messages", list(messages)), tools=tuple(tools))
    (found,) = of([row])
    return found


@EACH
def test_what_is_learnt_is_what_the_assistant_says(speaker: Speaker, work: Path) -> None:
    of, talk = encoder(speaker, work), Talk(seed=23)
    counts = Counter(check(of, plain(speaker.folder), *talk.conversation()) for _ in range(TURNS))
    assert counts[""] >= speaker.taken, counts


@EACH
def test_a_row_begins_once_and_its_end_is_an_end_of_the_artifact(speaker: Speaker, work: Path) -> None:
    of, talk, vanilla = encoder(speaker, work), Talk(seed=29), plain(speaker.folder)
    assert {vanilla.decode([end]) for end in of.ends} == set(speaker.ends)
    begins = vanilla("x")["input_ids"][0] == vanilla.bos_token_id
    rows = 0
    for _ in range(TURNS):
        messages, tools = talk.conversation()
        row = encode(of, messages, tools)
        if isinstance(row, Fault):
            continue
        ids = row.ids.tolist()
        assert (ids.count(vanilla.bos_token_id), ids[0] == vanilla.bos_token_id) == (int(begins), begins)
        if messages[-1].get("weight") == 0:
            continue
        assert row.trained is not None
        learnt = [token for token in row.ids[row.trained].tolist() if not vanilla.decode([token]).isspace()]
        assert learnt[-1] in of.ends
        rows += 1
    assert rows >= speaker.taken // 2


# A normalizer may change texts: Gemma's writes a space as U+2581 and cannot tell the two apart, Qwen's composes (NFC).
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), min_size=1, max_size=60).filter(
    lambda text: bool(text.strip())
)


@EACH
@settings(max_examples=150, deadline=None)
@given(first=TEXTS, last=TEXTS)
def test_the_tokens_learnt_decode_to_the_answers_and_their_ends_exactly(
    speaker: Speaker, work: Path, first: str, last: str
) -> None:
    asked = {"role": "user", "content": "Question"}
    answers = [{"role": "assistant", "content": text} for text in (first, last)]
    row = encode(encoder(speaker, work), [asked, answers[0], asked, answers[1]])
    assert isinstance(row, Encoded), row
    learnt, _ = learnt_and_rest(plain(speaker.folder), row)
    expected = [frame.format(written(speaker, text)) for frame, text in ((speaker.answer, first), (speaker.last, last))]
    assert learnt == expected


def written(speaker: Speaker, text: str) -> str:
    """Return an answer as template and normalizer leave it."""
    text = text.strip() if speaker.strips else text
    if speaker.tokenizer == "qwen3":
        return unicodedata.normalize("NFC", text.lstrip("\n"))
    return text


# ---------------------------------------------------------------- tools and reasoning


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln 🙂"}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call12345", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
REASONED: list[dict[str, Any]] = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4", "reasoning_content": "Two and two."},
]
QWEN, GPT, LLAMA, OWN_LLAMA, GEMMA = SPEAKERS[3], SPEAKERS[4], SPEAKERS[2], SPEAKERS[1], SPEAKERS[0]


@pytest.mark.parametrize(
    ("speaker", "messages", "expected"),
    [
        (
            QWEN,
            CALLED,
            [
                '<think>\n\n</think>\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln 🙂"}}\n'
                "</tool_call><|im_end|>\n",
                "<think>\n\n</think>\n\nIt rains.<|im_end|>\n",
            ],
        ),
        (QWEN, REASONED, ["<think>\nTwo and two.\n</think>\n\n4<|im_end|>\n"]),
        (
            GPT,
            CALLED,
            [
                "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>"
                '{"city": "Köln 🙂"}<|call|>',
                "<|start|>assistant<|channel|>final<|message|>It rains.<|return|>",
            ],
        ),
        (
            GPT,
            REASONED,
            [
                "<|start|>assistant<|channel|>analysis<|message|>Two and two.<|end|>"
                "<|start|>assistant<|channel|>final<|message|>4<|return|>"
            ],
        ),
        (
            LLAMA,
            CALLED,
            ['{"name": "weather", "parameters": {"city": "Köln 🙂"}}<|eot_id|>', "It rains.<|eot_id|>"],
        ),
    ],
    ids=["qwen3 calls", "qwen3 reasons", "gpt-oss calls", "gpt-oss reasons", "llama3.1 calls"],
)
def test_tools_and_reasoning_are_learnt_in_the_models_own_form(
    speaker: Speaker, messages: list[dict[str, Any]], expected: list[str], work: Path
) -> None:
    tools = [TOOL] if messages is CALLED else []
    row = encode(encoder(speaker, work), messages, tools)
    assert isinstance(row, Encoded), row
    learnt, rest = learnt_and_rest(plain(speaker.folder), row)
    assert learnt == expected
    if tools:
        assert "Tell the weather." in rest, "the tools are in the prompt"
        assert "rain" in rest.replace("It rains", "")


@pytest.mark.parametrize("speaker", [GEMMA, OWN_LLAMA], ids=str)
@pytest.mark.parametrize(("messages", "part"), [(CALLED, ""), (REASONED, "reasoning_content of messages[1]")])
def test_what_a_template_does_not_write_is_refused(
    speaker: Speaker, messages: list[dict[str, Any]], part: str, work: Path
) -> None:
    row = encode(encoder(speaker, work), messages, [TOOL] if messages is CALLED else [])
    assert isinstance(row, Fault)
    assert part in row.message


def test_the_first_template_of_qwen3_is_refused_with_the_name_that_works(work: Path) -> None:
    """The package has the template that Qwen3 was published with; it was changed later, and TRL marks the later one."""
    with pytest.raises(SpecError) as caught:
        encoder(Speaker("qwen3", "", "", "", (), 0), work)
    (problem,) = caught.value.problems
    assert problem.code == "TemplateNotPrefixConsistent"
    assert "such as qwen3 (another version of this one" in problem.cure


@pytest.mark.parametrize("name", TOKENIZERS)
def test_prepares_tokens_are_those_of_transformers(name: str, work: Path) -> None:
    """On text in many scripts, code and white space: the definition that stays behind has lost nothing."""
    texts = [
        "naïve 紙がない 🙂👩‍👩‍👧 \t\n\n  x",
        "def f(a: int) -> str:\n    return f'{a:>10}'\n",
        "\r\nÀ e\u0301 ￼",
        " ",
        "1234567",
    ]
    texts += [json.dumps({"a": [1, None, "é"]}), "全角\u3000\uff21", "Привет, мир! ", "مرحبا", "नमस्ते", "ﬁ ½ ™"]
    folder = present(tokenizer_folder(name), f"the tokenizer {name}")
    spec = DatasetSpec.model_validate({"train": "file://train.jsonl"})
    of = encoder_for(spec, Task.CAUSAL_LM, loaded(folder), ExampleLayout.TEXT, 100_000, None, work)
    for text in texts:
        (row,) = of([Example(1, text)])
        assert isinstance(row, Encoded), row
        expected = plain(folder)(text)["input_ids"]
        assert row.ids.tolist() == [*expected, plain(folder).eos_token_id], decoded(plain(folder), np.array(row.ids))
