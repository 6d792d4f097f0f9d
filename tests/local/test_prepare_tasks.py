"""Prepare from end to end for each task and each kind of labels: the columns that a worker reads, and the plan."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import ModelError
from finetune_api.messages import ProblemType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.prepare_stage import inspect
from tests.local.prepare_house import House, Rows, job_of, jsonl
from tests.support.models import make_bart, make_bert, make_gpt2, make_llama, make_t5

MAKERS = {"bert": make_bert, "llama": make_llama, "gpt2": make_gpt2, "t5": make_t5, "bart": make_bart}
QUESTIONS = [f"how do I reset the password of printer {index}" for index in range(40)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    rows: Rows
    columns: tuple[str, ...]
    task: Task
    kind: ProblemType | None = None
    spec: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def labelled(labels: list[Any]) -> Rows:
    return [{"text": text, "label": labels[index % len(labels)]} for index, text in enumerate(QUESTIONS)]


PAIRS: Rows = [{"prompt": text, "completion": f" open page {index}"} for index, text in enumerate(QUESTIONS)]
CHATS: Rows = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in PAIRS
]
ALPACA: Rows = [{"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in PAIRS]

CLASSES = ("input_ids", "label")
TOKENS = ("input_ids", "labels")
CASES = [
    Case("one label", "bert", labelled(["a", "b"]), CLASSES, Task.CLASSIFICATION, ProblemType.SINGLE_LABEL),
    Case(
        "several labels",
        "bert",
        labelled([["a"], ["a", "b"], []]),
        CLASSES,
        Task.CLASSIFICATION,
        ProblemType.MULTI_LABEL,
    ),
    Case("a number", "bert", labelled([1, 2.5, 4]), CLASSES, Task.CLASSIFICATION, ProblemType.REGRESSION),
    Case(
        "a decoder's label",
        "gpt2",
        labelled(["a", "b"]),
        CLASSES,
        Task.CLASSIFICATION,
        ProblemType.SINGLE_LABEL,
        {"task": "classification"},
    ),
    Case("pairs for T5", "t5", PAIRS, TOKENS, Task.SEQ2SEQ),
    Case("pairs for BART", "bart", PAIRS, TOKENS, Task.SEQ2SEQ),
    Case("conversations for T5", "t5", CHATS, TOKENS, Task.SEQ2SEQ),
    Case("Alpaca for BART", "bart", ALPACA, TOKENS, Task.SEQ2SEQ),
    Case(
        "labelled texts to hide words of",
        "bert",
        labelled(["a", "b"]),
        ("input_ids",),
        Task.MASKED_LM,
        None,
        {"task": "masked-lm"},
    ),
    Case("texts of a decoder", "llama", labelled(["a", "b"]), TOKENS, Task.CAUSAL_LM),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_task_gets_its_columns_and_a_whole_plan(case: Case, models: dict[str, Path], house: House) -> None:
    train = jsonl(house.folder / "train.jsonl", case.rows)
    made = house.prepare(job_of(models[case.model], train, house.uri, {"split": 0.2}, **case.spec)).plan
    assert (made.task, made.dataset.problem_type) == (case.task, case.kind)
    rows = house.rows(made)
    assert {tuple(row) for row in rows} == {case.columns}
    held = made.dataset.eval
    assert held is not None
    assert made.dataset.train.rows + held.rows == len(case.rows)
    assert made.schedule.max_steps > 0
    assert made.schedule.learning_rate > 0
    assert made.dataset.train.longest == max(max(len(row["input_ids"]), _target_length(row)) for row in rows)


def _target_length(row: dict[str, Any]) -> int:
    return len(row["labels"]) if "labels" in row else 0


def prepared(house: House, model: Path, rows: Rows, **spec: Any) -> Plan:
    return house.prepare(job_of(model, jsonl(house.folder / "train.jsonl", rows), house.uri, **spec)).plan


def test_several_labels_are_indices_and_numbers_are_what_stands_there(models: dict[str, Path], house: House) -> None:
    made = prepared(house, models["bert"], labelled([["b", "a"], [], ["c"], ["b"]]))
    assert made.dataset.labels == ("a", "b", "c")
    assert [row["label"] for row in house.rows(made)[:4]] == [[0, 1], [], [2], [1]]
    numbers = jsonl(house.folder / "numbers.jsonl", labelled([1, 2.5, -4]))
    made = house.prepare(job_of(models["bert"], numbers, house.uri), "another").plan
    assert made.dataset.labels == ()
    assert [row["label"] for row in house.rows(made)[:3]] == [1.0, 2.5, -4.0]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_target_has_the_tokens_that_its_tokenizer_makes_and_is_cut_without_an_end(
    family: str, models: dict[str, Path], house: House
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[family])
    long = {"prompt": "reset " * 3, "completion": "page " * 60}
    made = prepared(house, models[family], [*PAIRS, long], dataset={"maxLength": 24})
    rows = house.rows(made)
    assert rows[0]["input_ids"] == tokenizer(PAIRS[0]["prompt"])["input_ids"][:24]
    assert rows[0]["labels"] == tokenizer(PAIRS[0]["completion"].lstrip())["input_ids"][:24]
    assert rows[0]["labels"][-1] == tokenizer.eos_token_id
    assert len(rows[-1]["labels"]) == 24
    assert rows[-1]["labels"][-1] != tokenizer.eos_token_id
    assert made.dataset.train.truncated_rows >= 1
    assert made.dataset.train.trained_tokens == sum(len(row["labels"]) for row in rows)
    assert made.dataset.train.tokens == sum(len(row["labels"]) + len(row["input_ids"]) for row in rows)


def test_a_long_document_becomes_rows_each_with_its_own_special_tokens(models: dict[str, Path], house: House) -> None:
    words = [f"number {index}" for index in range(200)]
    made = prepared(
        house,
        models["bert"],
        [{"text": " ".join(words)}, {"text": "a short one"}],
        task="masked-lm",
        dataset={"maxLength": 40},
    )
    rows = [row["input_ids"] for row in house.rows(made)]
    assert made.dataset.train.truncated_rows == 0
    assert max(map(len, rows)) <= 40
    assert all(row[0] == 2 and row[-1] == 3 for row in rows)
    from transformers import AutoTokenizer

    whole = AutoTokenizer.from_pretrained(models["bert"])(" ".join(words))["input_ids"]
    assert [token for row in rows[:-1] for token in row[1:-1]] == whole[1:-1], "nothing is lost, nothing comes twice"


def test_a_conversation_of_several_answers_is_no_row_of_an_encoder_decoder(
    models: dict[str, Path], house: House
) -> None:
    turns = [{"role": role, "content": "again"} for role in ("user", "assistant", "user", "assistant")]
    rows = [*CHATS, {"messages": turns}]
    job = job_of(models["t5"], jsonl(house.folder / "train.jsonl", rows), house.uri)
    with pytest.raises(Exception, match=r"line 41: the conversation has 2 answers"):
        inspect(job)


def test_a_tokenizer_without_a_mask_token_cannot_hide_words(models: dict[str, Path], house: House) -> None:
    from transformers import AutoTokenizer

    from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer

    AutoTokenizer.from_pretrained(models["llama"]).save_pretrained(house.folder / "tokenizer")
    with pytest.raises(ModelError, match="no mask token"):
        load_fast_tokenizer(house.folder / "tokenizer", Task.MASKED_LM)
