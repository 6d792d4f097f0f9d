"""Splits of data sets on the hub: by the card, by names, as converted; and what is named where one is not there."""

from typing import Any

import pytest

from finetune_api.errors import FineTuneError
from finetune_trainer.prepare.data.hub_splits import Wanted, by_names, files_of, of_card, of_converted

TRAIN, EVAL = "spec.dataset.train", "spec.dataset.eval"
NAMES = [
    "README.md",
    "plain/train-0.parquet",
    "plain/test-0.parquet",
    "plain/unsup-0.parquet",
    "de/train.csv",
    "de/dev.csv",
]
PLAIN = {
    "config_name": "plain",
    "data_files": [{"split": "train", "path": "plain/train-*"}, {"split": "test", "path": ["plain/test-0.parquet"]}],
}

CARDS: dict[str, tuple[list[dict[str, Any]], str, str, list[str]]] = {
    "a pattern": ([PLAIN], TRAIN, "", ["plain/train-0.parquet"]),
    "a list": ([PLAIN], TRAIN, "?split=test", ["plain/test-0.parquet"]),
    "evaluation is the test, where there is no validation": ([PLAIN], EVAL, "", ["plain/test-0.parquet"]),
    "another configuration": (
        [PLAIN, {"config_name": "de", "data_dir": "de"}],
        EVAL,
        "?config=de",
        ["de/dev.csv"],
    ),
    "the default of several": (
        [PLAIN, {"config_name": "de", "data_files": "de/train.csv", "default": True}],
        TRAIN,
        "",
        ["de/train.csv"],
    ),
    "one called default": (
        [PLAIN, {"config_name": "default", "data_files": {"train": "de/train.csv"}}],
        TRAIN,
        "",
        ["de/train.csv"],
    ),
    "a folder": (
        [{"config_name": "x", "data_files": [{"split": "train", "path": "de"}]}],
        TRAIN,
        "",
        ["de/dev.csv", "de/train.csv"],
    ),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_says_which_files_are_a_split(case: str) -> None:
    configs, field, query, files = CARDS[case]
    assert files_of(of_card(configs, NAMES), Wanted.of("hf://x", field, query), "a/b", field) == files


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (
            ["data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-0-of-1.parquet"],
            {"train": 2, "test": 1},
        ),
        (["train.csv", "dev.csv", "notes.md"], {"train": 1, "validation": 1}),
        (["train/a.jsonl", "valid/a.jsonl"], {"train": 1, "validation": 1}),
        (["a.jsonl", "b.jsonl"], {"train": 2}),
        (["script.py"], {}),
    ],
)
def test_names_say_which_files_are_a_split(names: list[str], splits: dict[str, int]) -> None:
    table = by_names(names)
    assert {split: len(files) for split, files in (table["default"].splits if table else {}).items()} == splits


def test_the_hubs_own_files_have_configuration_and_split_in_their_paths() -> None:
    table = of_converted(
        ["de/train/0000.parquet", "de/partial-test/0000.parquet", "en/train/0001.parquet", "en/train/0000.parquet"]
    )
    assert table["de"].splits == {"train": ["de/train/0000.parquet"], "test": ["de/partial-test/0000.parquet"]}
    assert table["en"].splits == {"train": ["en/train/0000.parquet", "en/train/0001.parquet"]}


REFUSED = {
    "no such split": ([PLAIN], "?split=dev", "SplitNotFound", "has no split 'dev'; it has test, train"),
    "no such configuration": ([PLAIN], "?config=en", "ConfigNotFound", "has no configuration 'en'; it has plain"),
    "several configurations": (
        [PLAIN, {"config_name": "de", "data_dir": "de"}],
        "",
        "SeveralConfigs",
        "has several configurations: de, plain [SeveralConfigs] -> choose one: hf://datasets/a/b?config=de",
    ),
    "something else": ([PLAIN], "?split=train&name=x", "InvalidURI", "asks for 'name'"),
    "a part of a split": ([PLAIN], "?split=train[:10%]", "InvalidURI", "a part of a split"),
    "two splits": ([PLAIN], "?split=train+test", "InvalidURI", "or for several"),
    "no data": ([], "", "FileNotFound", "there are no data files in a/b"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_data_set_has_not_is_refused_with_what_it_has(case: str) -> None:
    configs, query, code, message = REFUSED[case]
    with pytest.raises(FineTuneError) as caught:
        files_of(of_card(configs, NAMES), Wanted.of("hf://datasets/a/b", TRAIN, query), "a/b", TRAIN)
    assert caught.value.problems[0].code == code
    assert message in str(caught.value)
