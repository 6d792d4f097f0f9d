"""Labels of words: which columns hold them, what is wrong with them, and at which tokens they are learnt."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.errors import DataError
from finetune_api.messages import Task
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.observed.encoded import IGNORED, RemarkCode
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.quality.judge import Context, judge
from finetune_trainer.prepare.tokens.portion_work import Classes
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, load_fast_tokenizer
from finetune_trainer.prepare.tokens.word_labels import windows
from tests.support.models import make_bert, make_mistral, make_roberta
from tests.unit.test_data_columns import checked
from tests.unit.test_tokens import encoded, made, transformers_tokenizer

TASK = Task.TOKEN_CLASSIFICATION
TEXT = "Anna Li went to Oslo."
BIO = ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
SHAPES: dict[str, dict[str, Any]] = {
    "two lists": {"tokens": ["Anna", "Li", "went", "to", "Oslo", "."], "ner_tags": BIO},
    "two lists as JSON text, by other names": {"words": '["Anna", "Li", "went"]', "labels": '["B-PER", "I-PER", "O"]'},
    "spans": {
        "text": TEXT,
        "entities": [{"start": 0, "end": 7, "label": "PER"}, {"start": 16, "end": 20, "type": "LOC"}],
    },
    "spans as lists": {"text": TEXT, "label": [[16, 20, "LOC"], [0, 7, "PER"]]},
}


@pytest.mark.parametrize("case", SHAPES)
def test_words_and_their_tags_are_read(case: str, tmp_path: Path) -> None:
    data = checked(tmp_path, [SHAPES[case], SHAPES[case]], TASK)
    example = next(data.train_examples())
    words = [example.text[start:end] for start, end in example.words]
    assert (
        list(zip(words, example.tags, strict=True))
        == list(zip(["Anna", "Li", "went", "to", "Oslo", "."], BIO, strict=True))[: len(words)]
    )
    assert set(data.labels) == set(example.tags)


def test_lines_of_words_are_read_and_marks_of_documents_are_not(tmp_path: Path) -> None:
    lines = ["-DOCSTART- -X- O O", "", "Anna NNP B-PER", "Li NNP I-PER", "went VBD O", "", "Oslo NNP B-LOC"]
    data = checked(tmp_path, lines, TASK, name="train.conll")
    assert [(one.text, one.tags) for one in data.train_examples()] == [
        ("Anna Li went", ("B-PER", "I-PER", "O")),
        ("Oslo", ("B-LOC",)),
    ]


def test_a_line_without_a_tag_is_named(tmp_path: Path) -> None:
    lines = ["Anna B-PER", "went O", "", "Oslo", "or O"]
    with pytest.raises(DataError) as caught:
        checked(tmp_path, lines, TASK, name="train.txt", documents="paragraph")
    (problem,) = caught.value.problems
    assert (problem.code, problem.lines) == ("UnequalLists", (4,))


def test_a_span_that_ends_within_a_word_ends_the_word(tmp_path: Path) -> None:
    row = {
        "text": "Oslo's rain",
        "entities": [{"start": 0, "end": 4, "label": "LOC"}, {"start": 7, "end": 9, "label": "X"}],
    }
    example = next(checked(tmp_path, [row], TASK).train_examples())
    words = [example.text[start:end] for start, end in example.words]
    assert list(zip(words, example.tags, strict=True)) == [
        ("Oslo", "B-LOC"),
        ("'", "O"),
        ("s", "O"),
        ("ra", "B-X"),
        ("in", "O"),
    ]


@pytest.mark.parametrize(
    ("text", "span", "words"),
    [
        ("我住在北京市", (3, 5), "我/O 住/O 在/O 北/B-LOC 京/I-LOC 市/O"),
        ("GPT-4は東京で", (6, 8), "GPT/O -/O 4/O は/O 東/B-LOC 京/I-LOC で/O"),
        ("อยู่ไทย", (4, 7), "อ/O ยู่/O ไ/B-LOC ท/I-LOC ย/I-LOC"),
        ("Oslo 서울에", (5, 7), "Oslo/O 서울/B-LOC 에/O"),
        ("नई दिल्ली में", (0, 9), "नई/B-LOC दिल्ली/I-LOC में/O"),
        ("cafe\u0301 می‌خواهم", (0, 5), "cafe\u0301/B-LOC می‌خواهم/O"),
    ],
)
def test_a_character_is_a_word_where_a_script_has_no_blanks_and_a_mark_is_part_of_one(
    text: str, span: tuple[int, int], words: str, tmp_path: Path
) -> None:
    """A run of characters that ended with the entity would tell the scores where it ends."""
    row = {"text": text, "entities": [[*span, "LOC"]]}
    example = next(checked(tmp_path, [row], TASK).train_examples())
    found = [example.text[start:end] for start, end in example.words]
    assert " ".join(f"{word}/{tag}" for word, tag in zip(found, example.tags, strict=True)) == words


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tag too few": ({"tokens": ["a", "b"], "tags": ["O"]}, "UnequalLists", "has 2 words, and 'tags' has 1 tags"),
    "no words": ({"tokens": [], "tags": []}, "EmptyText", "'tokens' has no words"),
    "words as a text": ({"tokens": "a b", "tags": ["O", "O"]}, "WrongType", "'tokens' is a string; it must be a list"),
    "a number as a word": ({"tokens": ["a", 1], "tags": ["O", "O"]}, "WrongType", "'tokens[1]' is a number"),
    "no tag": ({"tokens": ["a", "b"], "tags": ["O", None]}, "NullValue", "'tags[1]' is null"),
    "beyond the text": (
        {"text": "ab", "entities": [[0, 3, "X"]]},
        "InvalidSpan",
        "'entities[0]' is characters 0 to 3 of a text of 2",
    ),
    "overlapping spans": (
        {"text": "abcd", "entities": [[0, 3, "X"], [2, 4, "Y"]]},
        "InvalidSpan",
        "overlap at character 2",
    ),
    "a span of blanks": ({"text": "a  b", "entities": [[1, 3, "X"]]}, "InvalidSpan", "covers white space only"),
    "places as text": ({"text": "ab", "entities": [["0", "1", "X"]]}, "InvalidSpan", "no whole numbers"),
    "no span": ({"text": "ab", "entities": ["X"]}, "InvalidSpan", "no object with start, end and label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    row, code, message = WRONG[case]
    good = {"text": "ab c", "entities": [[0, 2, "X"]]} if "text" in row else {"tokens": ["a", "b"], "tags": ["X", "O"]}
    with pytest.raises(DataError) as caught:
        checked(tmp_path, [good, row], TASK)
    (problem,) = caught.value.problems
    assert (problem.code, problem.lines) == (code, (2,))
    assert message in problem.message


# ---------------------------------------------------------------- tokens

NAMES = ("B-LOC", "B-PER", "I-PER", "O")
CLASSES = Classes(None, NAMES)
WORDS = ["reset", "printers", "naïve", "it"]
TAGS = ("B-PER", "I-PER", "O", "B-LOC")


def example_of(words: list[str], tags: tuple[str, ...]) -> Example:
    starts = [sum(len(word) + 1 for word in words[:index]) for index in range(len(words))]
    places = tuple((start, start + len(word)) for start, word in zip(starts, words, strict=True))
    return Example(1, " ".join(words), words=places, tags=tags)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedTokenizer]:
    folder = make_bert(tmp_path_factory.mktemp("models") / "bert")
    return folder, load_fast_tokenizer(folder, TASK)


def test_labels_stand_where_transformers_examples_put_them(bert: tuple[Path, LoadedTokenizer], tmp_path: Path) -> None:
    folder, tokenizer = bert
    encoder = made(tmp_path, tokenizer, ExampleLayout.WORDS, TASK, 64)
    example = example_of(WORDS, TAGS)
    (row,) = encoded(encoder, example)
    vanilla = transformers_tokenizer(folder)(WORDS, is_split_into_words=True)
    assert row.ids.tolist() == vanilla["input_ids"]
    firsts = [vanilla.word_ids().index(word) for word in range(len(WORDS))]
    expected = [IGNORED] * len(row.ids)
    for place, tag in zip(firsts, TAGS, strict=True):
        expected[place] = NAMES.index(tag)
    assert CLASSES.of(example, row).tolist() == expected


@pytest.mark.parametrize("make", [make_roberta, make_mistral])
def test_tokens_are_those_of_the_text_and_each_word_has_one_label(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    encoder = made(tmp_path, load_fast_tokenizer(folder, TASK), ExampleLayout.WORDS, TASK, 64)
    (row,) = encoded(encoder, example_of(WORDS, TAGS))
    assert row.ids.tolist() == transformers_tokenizer(folder)(" ".join(WORDS))["input_ids"]
    assert row.words is not None
    assert [word for word in row.words.tolist() if word >= 0] == [0, 1, 2, 3]


def test_a_long_row_becomes_several_and_no_entity_is_cut(bert: tuple[Path, LoadedTokenizer], tmp_path: Path) -> None:
    encoder = made(tmp_path, bert[1], ExampleLayout.WORDS, TASK, 6)
    words = ["it", "is", "the", "it", "is", "the", "it"]
    example = example_of(words, ("O", "O", "O", "B-PER", "I-PER", "O", "O"))
    (row,) = encoded(encoder, example)
    assert row.parts is not None
    assert not row.cut
    assert row.words is not None
    ends = row.parts.cumsum().tolist()
    parts = [row.words[end - size : end].tolist() for end, size in zip(ends, row.parts.tolist(), strict=True)]
    assert parts == [[-1, 0, 1, 2, -1], [-1, 3, 4, 5, 6, -1]]


def test_windows_begin_with_a_word_and_a_word_beyond_a_window_is_cut() -> None:

    words = np.array([0, -1, 1, -1, -1, -1, -1, 2], np.int32)
    assert [(one.start, one.stop) for one in windows(words, frozenset(), 4)] == [(0, 2), (2, 6), (6, 8)]
    assert [(one.start, one.stop) for one in windows(words, frozenset(), 8)] == [(0, 8)]


def test_a_tag_that_continues_nothing_is_remarked(bert: tuple[Path, LoadedTokenizer], tmp_path: Path) -> None:
    encoder = made(tmp_path, bert[1], ExampleLayout.WORDS, TASK, 64)
    (row,) = encoded(encoder, example_of(WORDS, ("O", "I-PER", "O", "O")))
    assert [(one.code, one.subject) for one in row.remarks] == [(RemarkCode.INCONSISTENT_TAGS, "I-PER after O")]


def test_the_report_counts_entities_and_names_what_is_inconsistent(
    bert: tuple[Path, LoadedTokenizer], tmp_path: Path
) -> None:
    encoder = made(tmp_path, bert[1], ExampleLayout.WORDS, TASK, 64)
    rows = [example_of(["it", f"is{row}", "the"], ("B-PER", "O", "O")) for row in range(60)]
    rows += [example_of(["it", f"is{row}", "the"], ("O", "O", "O")) for row in range(3)]  # as the first three, untagged
    rows += [example_of(["it", "needs", "naïve"], ("O", "I-PER", "B-LOC"))]
    seen = Observation(unk_id=1)
    seen.add(rows, encoded(encoder, *rows))
    report = judge(seen, None, Context(task=TASK, max_length=64))
    assert [(one.name, one.rows) for one in report.train.labels] == [("PER", 61), ("LOC", 1)]
    found = {one.code: one for one in report.findings}
    assert "the tag I-PER after O" in found["InconsistentTags"].message
    assert "set spec.training.class_weights: balanced" in found["UnbalancedLabels"].cure
    assert "'LOC' (1)" in found["RareLabels"].message
    assert "3 texts have different labels" in found["ConflictingLabels"].message
