"""Data of the hub: pinned, fetched once, named by file, pattern or split, by a hub on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.prepare.data.locate import locate_files
from tests.local.source_tree import FIELD, ROWS, names, refused, silent, write_tree
from tests.support.hub import Hub, start_hub


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def hub(tree: Path) -> Iterator[Hub]:
    with start_hub({}, {"team/rows": tree}) as running:
        running.refs |= {"v1", "refs/convert/parquet"}
        yield running


@pytest.mark.parametrize("revision", ["", "@v1", "@refs/convert/parquet", "@commit"])
def test_a_file_of_the_hub_is_pinned_and_fetched_once(hub: Hub, tmp_path: Path, revision: str) -> None:
    environ = {"HF_ENDPOINT": hub.endpoint}
    given = f"@{hub.sha('team/rows')}" if revision == "@commit" else revision
    (place,) = locate_files(f"hf://datasets/team/rows{given}/deep/c.jsonl", FIELD, environ)
    assert place.size == len(ROWS)
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    hub.seen.clear()
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert hub.seen == []
    (other,) = locate_files("hf://datasets/team/rows/deep/c.jsonl", FIELD, environ)
    assert other.fingerprint == place.fingerprint


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("hf://datasets/team/none/x.jsonl", "DatasetNotFound", "is not a data set on the hub, or is private"),
        ("hf://datasets/team/rows@v9/a.jsonl", "RevisionNotFound", "has no such revision"),
        ("hf://datasets/team/rows/x.jsonl", "FileNotFound", "it has a.jsonl, b.jsonl, deep/c.jsonl ..."),
        ("hf://datasets/team/rows/x*.jsonl", "FileNotFound", "correct the pattern"),
        ("hf://datasets/rows", "InvalidURI", "write hf://datasets/organisation/name"),
        ("hf://team/rows/x.jsonl", "InvalidURI", "does not name a data set of the hub"),
        ("hf://datasets/team/a b--c../x", "InvalidURI", "write hf://datasets/organisation/name"),
    ],
)
def test_what_the_hub_has_not_is_refused(hub: Hub, uri: str, code: str, message: str) -> None:
    seen = refused(uri, {"HF_ENDPOINT": hub.endpoint})
    assert seen[0] == code
    assert message in seen[1]


def test_a_gated_data_set_needs_the_token(hub: Hub, tree: Path, tmp_path: Path) -> None:
    hub.datasets["team/gated"] = tree
    hub.gated.add("team/gated")
    environ = {"HF_ENDPOINT": hub.endpoint}
    assert refused("hf://datasets/team/gated/a.jsonl", environ)[0] == "GatedDataset"
    (place,) = locate_files("hf://datasets/team/gated/a.jsonl", FIELD, {**environ, "HF_TOKEN": hub.token})
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


CARD = """---
configs:
- config_name: plain
  data_files:
  - {split: train, path: "plain/train-*"}
  - {split: test, path: plain/test-0.jsonl}
---
# Reviews
"""


@pytest.fixture
def reviews(hub: Hub, tmp_path: Path) -> str:
    """A data set with a card, with splits by names, and one of which the hub alone has files."""
    for name, files in {
        "carded": {"README.md": CARD, "plain/train-0.jsonl": "{}", "plain/test-0.jsonl": "{}", "x/train.jsonl": "{}"},
        "named": {"data/train-0.jsonl": "{}", "data/dev-0.jsonl": "{}"},
        "scripted": {"scripted.py": "x", "README.md": "# nothing"},
        "converted": {"de/train/0000.parquet": "x", "en/train/0000.parquet": "x", "en/test/0000.parquet": "x"},
    }.items():
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        hub.datasets[f"team/{name}"] = tmp_path / name
    hub.branches["team/scripted", "refs/convert/parquet"] = tmp_path / "converted"
    return "hf://datasets/team/"


SPLITS = {
    "by the card": ("team/carded", "spec.dataset.train", "carded/plain/train-0.jsonl"),
    "by the card, for evaluation": ("hf://datasets/team/carded", "spec.dataset.eval", "carded/plain/test-0.jsonl"),
    "said": ("hf://datasets/team/carded?split=test&config=plain", "spec.dataset.train", "carded/plain/test-0.jsonl"),
    "said of a name": ("team/carded?split=test", "spec.dataset.train", "carded/plain/test-0.jsonl"),
    "by names": ("team/named", "spec.dataset.eval", "named/data/dev-0.jsonl"),
    "of one branch": ("team/named@main?split=train", "spec.dataset.train", "named/data/train-0.jsonl"),
    "as the hub has converted it": (
        "team/scripted?config=en&split=test",
        "spec.dataset.train",
        "scripted@refs/convert/parquet/en/test/0000.parquet",
    ),
}


@pytest.mark.parametrize("case", SPLITS)
def test_a_data_set_of_the_hub_is_named_by_its_split(hub: Hub, reviews: str, tmp_path: Path, case: str) -> None:
    uri, field, expected = SPLITS[case]
    found = locate_files(uri, field, {"HF_ENDPOINT": hub.endpoint})
    assert names(found, reviews) == [expected]
    assert found[0].fetch(tmp_path / "work", silent).read_text() in ("{}", "x")


def test_what_a_data_set_of_the_hub_has_is_named(hub: Hub, reviews: str) -> None:
    environ = {"HF_ENDPOINT": hub.endpoint}
    assert "has no split 'dev'; it has test, train" in refused(f"{reviews}carded?split=dev", environ)[1]
    assert "has several configurations: de, en" in refused(f"{reviews}scripted", environ)[1]
    assert refused(f"{reviews}carded/plain?split=test", environ)[0] == "InvalidURI"


def test_a_gated_data_set_needs_the_token_for_its_splits_too(hub: Hub, reviews: str) -> None:
    hub.gated.add("team/carded")
    try:
        environ = {"HF_ENDPOINT": hub.endpoint}
        assert refused("team/carded", environ)[0] == "GatedDataset"
        assert len(locate_files("team/carded", FIELD, {**environ, "HF_TOKEN": hub.token})) == 1
    finally:
        hub.gated.remove("team/carded")


def test_a_hub_that_does_not_answer_is_named() -> None:
    code, text = refused("hf://datasets/team/rows/a.jsonl", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert code == "HubFailed"
    assert "check the connection to the hub (HF_ENDPOINT), or copy the data to s3://" in text
