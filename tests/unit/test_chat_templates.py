"""Conversations of every kind through the chat templates that TRL ships: what is learnt is what was written.

`tests/support/talks.py` says what is checked of each.
"""

from collections import Counter
from pathlib import Path

import pytest

from finetune_trainer.prepare.tokens import templates
from tests.support.chats import chat_tokenizer
from tests.support.talks import Talk, Then, check
from tests.unit.test_templates import encoder

FEW = ("qwen3", "llama3_1", "gptoss", "phi3_5")
ALL = (
    "cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "gemma3", "gemma4", "gemma4_v5", "glm4moe",
    "gptoss", "idefics3", "lfm2", "lfm2_2_5", "llama3", "llama3_1", "llama3_2", "llava_next", "muse_glimmer",
    "nemotron_3_nano", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_6", "qwen3_instruct_2507",
)  # fmt: skip


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Then)


def refusals(name: str, conversations: int, folder: Path) -> Counter[str]:
    """How many conversations of a template are taken ("") or refused, by code."""
    of = encoder(folder, templates._shipped()[name], limit=100_000)
    talk = Talk(seed=11)
    return Counter(check(of, chat_tokenizer(), *talk.conversation()) for _ in range(conversations))


@pytest.mark.parametrize("name", FEW)
def test_what_is_learnt_is_what_was_written(name: str, tmp_path: Path) -> None:
    counts = refusals(name, 12, tmp_path)
    assert counts[""] >= 3


@pytest.mark.matrix
@pytest.mark.parametrize("name", ALL)
def test_what_is_learnt_is_what_was_written_by_every_template(name: str, tmp_path: Path) -> None:
    counts = refusals(name, 200, tmp_path)
    print(f"\n{name}: {counts['']} taken, {dict(counts)}")
    assert counts[""] >= 40  # plain conversations are; what a template does not write is refused
