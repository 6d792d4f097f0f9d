"""Prepare of preference tuning from end to end: the columns that the worker reads, and the plan."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import DataError, SpecError
from finetune_api.messages import Task
from finetune_api.plan import Plan
from finetune_api.preference_losses import PreferenceLoss
from finetune_trainer.prepare.observed.encoded import IGNORED
from finetune_trainer.prepare.prepare_stage import inspect
from tests.local.prepare_house import House, Rows, job_of, jsonl
from tests.support.models import make_llama

QUESTIONS = [f"how do I reset the password of printer {index}" for index in range(24)]
TEXTS: Rows = [
    {"prompt": f"{text}?", "chosen": f" press button {index}", "rejected": f" call {index} times for the office"}
    for index, text in enumerate(QUESTIONS)
]
JUDGED: Rows = [
    {"prompt": row["prompt"], "completion": row["chosen"] if index % 2 else row["rejected"], "label": bool(index % 2)}
    for index, row in enumerate(TEXTS)
]
CHATML = {"dataset": {"chatTemplate": "chatml"}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama)


def prepared(house: House, model: Path, rows: Rows, evaluation: Any = None, **spec: Any) -> Plan:
    train = jsonl(house.folder / "train.jsonl", rows)
    return house.prepare(job_of(model, train, house.uri, evaluation, task="preference", **spec)).plan


def sequences(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Ids of each sequence of a row, and those of them that are trained."""
    found, start = [], 0
    for length in row["seq_lengths"]:
        part = slice(start, start + length)
        found.append((row["input_ids"][part], [label for label in row["labels"][part] if label != IGNORED]))
        start += length
    assert start == len(row["input_ids"])
    return found


def test_a_pair_is_two_whole_sequences_that_train_their_answers(llama: Path, house: House, tokenizer: Any) -> None:
    made = prepared(house, llama, TEXTS, {"split": 0.25})
    assert (made.task, made.dataset.judged) == (Task.PREFERENCE, False)
    rows = house.rows(made)
    assert tuple(rows[0]) == ("input_ids", "labels", "seq_lengths")
    held = made.dataset.eval
    assert held is not None
    assert (len(rows), made.dataset.train.rows, held.rows) == (18, 18, 6)
    known = {text["prompt"]: text for text in TEXTS}
    for row in rows:
        (chosen, better), (rejected, worse) = sequences(row)
        text = tokenizer.decode(chosen, skip_special_tokens=True)
        source = known[text[: text.index("?") + 1]]
        assert text == source["prompt"] + source["chosen"]
        assert tokenizer.decode(rejected, skip_special_tokens=True) == source["prompt"] + source["rejected"]
        assert tokenizer.decode(better) == source["chosen"] + tokenizer.eos_token
        assert tokenizer.decode(worse).strip() == source["rejected"].strip() + tokenizer.eos_token
    assert made.dataset.train.longest == max(max(row["seq_lengths"]) for row in rows)
    assert made.dataset.train.tokens == sum(len(row["input_ids"]) for row in rows)
    assert made.dataset.train.trained_tokens == sum(label != IGNORED for row in rows for label in row["labels"])


def test_a_conversation_trains_its_last_answer_with_the_end_of_turn(llama: Path, house: House, tokenizer: Any) -> None:
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "again"}]
    rows = [
        {
            "chosen": [*before, {"role": "user", "content": q}, {"role": "assistant", "content": f"press {at}"}],
            "rejected": [*before, {"role": "user", "content": q}, {"role": "assistant", "content": f"call {at}"}],
        }
        for at, q in enumerate(QUESTIONS)
    ]
    made = prepared(house, llama, rows, **CHATML)
    for at, row in enumerate(house.rows(made)):
        (chosen, better), (rejected, worse) = sequences(row)
        assert "again" in tokenizer.decode(chosen)
        shared = len(rejected) - len(worse)
        assert chosen[:shared] == rejected[:shared], "both answer the same tokens"
        assert tokenizer.decode(better).replace(" ", "").startswith(f"press{at}<|im_end|>")
        assert tokenizer.decode(worse).replace(" ", "").startswith(f"call{at}<|im_end|>")
    assert made.dataset.ends, "the artifact ends its answers as the rows do"


def test_a_single_answer_has_a_label_and_the_loss_of_kto(llama: Path, house: House) -> None:
    made = prepared(house, llama, JUDGED)
    rows = house.rows(made)
    assert tuple(rows[0]) == ("input_ids", "labels", "seq_lengths", "label")
    assert [row["label"] for row in rows] == [0, 1] * 12
    assert all(row["seq_lengths"] == [len(row["input_ids"])] for row in rows)
    assert made.dataset.judged
    assert made.preference is not None
    assert made.preference.loss_type is PreferenceLoss.KTO


def test_a_pair_becomes_two_single_answers_for_kto(llama: Path, house: House) -> None:
    pairs = [sequences(row) for row in house.rows(prepared(house, llama, TEXTS))]
    made = house.prepare(
        job_of(
            llama,
            house.folder / "train.jsonl",
            house.uri,
            task="preference",
            preference={"loss_type": "kto", "desirable_weight": 1.25},
        ),
        "another",
    ).plan
    rows = house.rows(made)
    assert [row["label"] for row in rows] == [1, 0] * len(TEXTS)
    assert [one for row in rows for one in sequences(row)] == [one for pair in pairs for one in pair]
    assert made.preference is not None
    assert made.preference.desirable_weight == 1.25


def test_both_answers_are_cut_at_the_limit_and_counted(llama: Path, house: House) -> None:
    long = {"prompt": "reset?", "chosen": " page" * 60, "rejected": " page" * 50}
    made = prepared(house, llama, [*TEXTS, long], dataset={"maxLength": 40})
    row = house.rows(made)[-1]
    assert row["seq_lengths"] == [40, 40]
    assert made.dataset.train.truncated_rows == 1
    assert made.dataset.train.longest == 40


def test_a_prompt_that_leaves_no_answer_is_refused_or_skipped(llama: Path, house: House) -> None:
    rows = [*TEXTS, {"prompt": "page " * 60, "chosen": " yes", "rejected": " no"}]
    train = jsonl(house.folder / "train.jsonl", rows)
    job = job_of(llama, train, house.uri, task="preference", dataset={"maxLength": 40})
    with pytest.raises(DataError, match="no token to learn is left in the row when cut at 40 tokens"):
        inspect(job)
    skipping = {"maxLength": 40, "onInvalid": "Skip", "maxInvalidPercent": 10}
    made = house.prepare(job_of(llama, train, house.uri, task="preference", dataset=skipping)).plan
    assert (made.dataset.train.rows, made.dataset.skipped_rows) == (len(TEXTS), 1)


def test_a_loss_of_pairs_needs_pairs(llama: Path, house: House) -> None:
    train = jsonl(house.folder / "train.jsonl", JUDGED)
    job = job_of(llama, train, house.uri, task="preference", preference={"loss_type": "ipo"})
    with pytest.raises(SpecError, match="is ipo, which compares two completions; the rows have one completion"):
        inspect(job)


def test_causal_data_sets_of_pairs_name_the_task(llama: Path, house: House) -> None:
    job = job_of(llama, jsonl(house.folder / "train.jsonl", TEXTS), house.uri, task="causal-lm")
    with pytest.raises(DataError, match="these are preferences: set"):
        inspect(job)
