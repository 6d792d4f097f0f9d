"""A tree of files with and without data, and what is located in it, for tests of where data comes from."""

import json
from pathlib import Path

import pytest

from finetune_api.errors import FineTuneError
from finetune_trainer.prepare.data.file_places import Place
from finetune_trainer.prepare.data.locate import locate_files
from finetune_trainer.storage import open_store
from tests.support.s3 import S3Server

FIELD = "spec.dataset.train"
ROWS = "".join(json.dumps({"text": f"row {index}"}) + "\n" for index in range(100)).encode()
TREE = [
    ".hidden.jsonl",
    "LICENSE.txt",
    "README.md",
    "_SUCCESS",
    "a.jsonl",
    "b.jsonl",
    "deep/c.jsonl",
    "deep/deeper/d.jsonl",
    "deep/e.csv",
]


def write_tree(folder: Path) -> Path:
    for name in TREE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ROWS)
    return folder


def fill_bucket(server: S3Server) -> str:
    """Make a bucket with the tree below `data/`; return its URI."""
    uri = server.make_bucket("tree")
    store = open_store(uri, server.environ)
    for name in TREE:
        store.put(f"data/{name}", ROWS)
    return uri


def silent(_: str) -> None:
    pass


def names(found: tuple[Place, ...], base: str) -> list[str]:
    assert all(place.name.startswith(base) for place in found)
    return [place.name.removeprefix(base) for place in found]


def refused(uri: str, environ: dict[str, str] | None = None, declared: str | None = None) -> tuple[str, str]:
    with pytest.raises(FineTuneError) as caught:
        locate_files(uri, FIELD, environ or {}, declared)
    (problem,) = caught.value.problems
    assert problem.field == FIELD
    return problem.code, str(problem)
