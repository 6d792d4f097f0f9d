"""Two texts of one row: which columns they are, and that their tokens are those of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import DataError
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import TEXT_PAIRS
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.tokens.text_pairs import LINE_BREAK, longest_first
from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer
from tests.support.models import MAKERS, make_bert
from tests.unit.test_data_columns import checked
from tests.unit.test_tokens import encoded, made, transformers_tokenizer

TEXTS = [("It rains.", "The street is wet"), ("short", "a much longer text of many words " * 4), ("x " * 60, "y " * 9)]
EXAMPLES = [Example(1, first, "a", text_pair=second) for first, second in TEXTS]


def typed_bert(folder: Path) -> Path:
    """A BERT whose tokenizer says, as the released ones do, that the model takes token types."""
    make_bert(folder)
    path = folder / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names}))
    return folder


@pytest.mark.parametrize("names", TEXT_PAIRS.values(), ids=" and ".join)
def test_two_texts_are_recognised_by_the_names_of_known_data_sets(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [{names[0]: f"a{row}", names[1]: f"b{row}", "label": "yn"[row % 2]} for row in range(4)]
    data = checked(tmp_path, rows, Task.CLASSIFICATION)
    assert data.layout is ExampleLayout.LABELLED_PAIR
    assert [(one.text, one.text_pair, one.label) for one in data.train_examples()][:2] == [
        ("a0", "b0", "y"),
        ("a1", "b1", "n"),
    ]


def test_a_job_names_the_columns_and_numbers_are_scores(tmp_path: Path) -> None:
    rows: list[Any] = [{"q": f"a{row}", "d": f"b{row}", "score": row / 2} for row in range(4)]
    data = checked(tmp_path, rows, Task.CLASSIFICATION, columns={"text": "q", "text_pair": "d", "label": "score"})
    assert data.problem_type is ProblemType.REGRESSION
    assert [(one.text_pair, one.number) for one in data.train_examples()][:2] == [("b0", 0.0), ("b1", 0.5)]


def test_a_row_of_one_text_among_pairs_is_a_fault(tmp_path: Path) -> None:
    rows = [{"premise": "p", "hypothesis": text, "label": label} for text, label in (("h", "a"), ("", "b"), ("i", "b"))]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, rows, Task.CLASSIFICATION)
    assert [(one.code, one.lines) for one in caught.value.problems] == [("EmptyText", (2,))]


def test_columns_of_two_pairs_are_ambiguous(tmp_path: Path) -> None:
    row = {"query": "q", "passage": "p", "document": "d", "label": "a"}
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [row], Task.CLASSIFICATION)
    (problem,) = caught.value.problems
    assert problem.code == "AmbiguousColumns"
    assert "columns: {text: query, text_pair: passage, label: label}" in problem.cure


@pytest.mark.parametrize("family", ["bert", "roberta", "mistral"])
def test_pairs_have_the_tokens_types_and_cuts_of_transformers(family: str, tmp_path: Path) -> None:
    folder = typed_bert(tmp_path / "m") if family == "bert" else MAKERS[family](tmp_path / "m")
    tokenizer, vanilla = load_fast_tokenizer(folder, Task.CLASSIFICATION), transformers_tokenizer(folder)
    for limit in (1000, 20, 9):
        encoder = made(tmp_path, tokenizer, ExampleLayout.LABELLED_PAIR, Task.CLASSIFICATION, limit)
        assert encoder.pair_separator == ""
        expected = vanilla(*map(list, zip(*TEXTS, strict=True)), truncation=True, max_length=limit)
        rows = encoded(encoder, *EXAMPLES)
        assert [row.ids.tolist() for row in rows] == expected["input_ids"]
        types = [row.types.tolist() for row in rows if row.types is not None]
        assert types == (expected["token_type_ids"] if family == "bert" else [])
        assert [row.cut for row in rows] == [row.full_length > limit for row in rows]


def test_a_tokenizer_without_a_mark_between_texts_gets_a_line_break(tmp_path: Path) -> None:
    folder = MAKERS["gpt2"](tmp_path / "m")
    tokenizer = load_fast_tokenizer(folder, Task.CLASSIFICATION)
    whole = made(tmp_path, tokenizer, ExampleLayout.LABELLED_PAIR, Task.CLASSIFICATION, 1000)
    assert whole.pair_separator == LINE_BREAK
    ours, plain = encoded(whole, *EXAMPLES), transformers_tokenizer(folder)
    assert [row.ids.tolist() for row in ours] == plain([f"{first}\n{second}" for first, second in TEXTS])["input_ids"]
    short = encoded(made(tmp_path, tokenizer, ExampleLayout.LABELLED_PAIR, Task.CLASSIFICATION, 16), *EXAMPLES)
    assert [len(row.ids) for row in short] == [16, 16, 16]
    for (first, second), row in zip(TEXTS, short, strict=True):
        kept = plain.decode(row.ids).split(LINE_BREAK)
        assert first.startswith(kept[0])
        assert second.startswith(kept[1])
        assert all(kept)


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((3, 4), (3, 4)), ((3, 40), (3, 7)), ((40, 3), (7, 3)), ((40, 50), (5, 5)), ((5, 5), (5, 5))],
)
def test_the_longer_text_is_cut_first(lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    assert longest_first(*lengths, room=10) == kept
