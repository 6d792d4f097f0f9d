"""Where data comes from: files, patterns, folders, buckets, the hub and the web, by real servers on this machine."""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from finetune_api.contract import Env
from finetune_api.errors import DataError, FineTuneError, ModelError, SpecError, StorageError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec, FineTuneJob, ModelSpec
from finetune_trainer.prepare.data import places, web
from finetune_trainer.prepare.data.dataset import check
from finetune_trainer.prepare.data.locate import locate
from finetune_trainer.prepare.data.places import Place
from finetune_trainer.prepare.data.sources import Sources, data_environ, locate_all
from finetune_trainer.prepare.models import locate_model
from finetune_trainer.prepare.stage import prepare
from finetune_trainer.storage import ObjectStore, open_store
from tests.support.hub import Hub, start_hub
from tests.support.s3 import S3Server, start_s3
from tests.support.web import Web, start_web

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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    """A bucket with the tree, below `data/`."""
    uri = server.make_bucket("tree")
    store = open_store(uri, server.environ)
    for name in TREE:
        store.put(f"data/{name}", ROWS)
    return uri


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(ROWS)
    return folder


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(web, "FIRST_WAIT", 0.001)
    with start_web() as running:
        yield running


@pytest.fixture(scope="module")
def hub(tree: Path) -> Iterator[Hub]:
    with start_hub({}, {"team/rows": tree}) as running:
        running.refs |= {"v1", "refs/convert/parquet"}
        yield running


def silent(_: str) -> None:
    pass


def names(found: tuple[Place, ...], base: str) -> list[str]:
    assert all(place.name.startswith(base) for place in found)
    return [place.name.removeprefix(base) for place in found]


def refused(uri: str, environ: dict[str, str] | None = None, declared: str | None = None) -> tuple[str, str]:
    with pytest.raises(FineTuneError) as caught:
        locate(uri, FIELD, environ or {}, declared)
    (problem,) = caught.value.problems
    assert problem.field == FIELD
    return problem.code, str(problem)


# ---------------------------------------------------------------- one, many, a folder

CHOICES: dict[str, list[str]] = {
    "a.jsonl": ["a.jsonl"],
    "": ["a.jsonl", "b.jsonl"],
    "*.jsonl": ["a.jsonl", "b.jsonl"],
    "[b-z].jsonl": ["b.jsonl"],
    "?.jsonl": ["a.jsonl", "b.jsonl"],
    "*": ["a.jsonl", "b.jsonl"],
    "**/*.jsonl": ["a.jsonl", "b.jsonl", "deep/c.jsonl", "deep/deeper/d.jsonl"],
    "deep/*.jsonl": ["deep/c.jsonl"],
    "deep/**/*.jsonl": ["deep/c.jsonl", "deep/deeper/d.jsonl"],
    "*/*/d.jsonl": ["deep/deeper/d.jsonl"],
    ".hidden.jsonl": [".hidden.jsonl"],
    ".*.jsonl": [".hidden.jsonl"],
}


@pytest.mark.parametrize("path", CHOICES)
@pytest.mark.parametrize("scheme", ["file", "s3", "hf"])
def test_a_uri_names_a_file_a_pattern_or_a_folder(request: pytest.FixtureRequest, scheme: str, path: str) -> None:
    environ: dict[str, str] = {}
    if scheme == "file":
        base = f"file://{request.getfixturevalue('tree')}/"
    elif scheme == "s3":
        base = f"{request.getfixturevalue('bucket')}/data/"
        environ = request.getfixturevalue("server").environ
    else:
        base, environ = "hf://datasets/team/rows/", {"HF_ENDPOINT": request.getfixturevalue("hub").endpoint}
    assert names(locate(base + path, FIELD, environ), base) == CHOICES[path]


def test_a_relative_path_begins_at_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(locate("file://deep/*.csv", FIELD, {}), "file://") == ["deep/e.csv"]
    assert names(locate("file://.", FIELD, {}), "file://") == ["a.jsonl", "b.jsonl"]


def test_a_name_with_wildcards_in_it_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows [1].jsonl").write_bytes(ROWS)
    assert len(locate(f"file://{tmp_path}/rows%20[1].jsonl", FIELD, {})) == 1


def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tree / "a.jsonl")
    (place,) = locate(f"file://{tmp_path}/*.jsonl", FIELD, {})
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_link_to_a_folder_is_followed_once(tmp_path: Path, tree: Path) -> None:
    data = tmp_path / "data"
    (data / "own").mkdir(parents=True)
    (data / "own" / "x.jsonl").write_bytes(ROWS)
    (tmp_path / "beside.jsonl").write_bytes(ROWS)
    (data / "link").symlink_to(tree / "deep")
    (data / "loop").symlink_to(data)
    (data / "up").symlink_to(tmp_path)
    (data / "own" / "again").symlink_to(tree / "deep" / "deeper")
    base = f"file://{data}/"
    assert names(locate(f"{base}**/*.jsonl", FIELD, {}), base) == ["link/c.jsonl", "link/deeper/d.jsonl", "own/x.jsonl"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as the library datasets saves several splits."""
    folder = tmp_path / "saved"
    for split, rows in {"train": 3, "test": 2}.items():
        (folder / split).mkdir(parents=True)
        table = pa.table({"text": [f"{split} {row}" for row in range(rows)]})
        for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
            with pa.ipc.new_stream(folder / split / name, table.schema) as writer:
                writer.write_table(table)
        for name in ("state.json", "dataset_info.json"):
            (folder / split / name).write_text("{}")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    return folder


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_a_saved_data_set_is_read_by_its_splits(saved: Path, server: S3Server, scheme: str) -> None:
    base, environ = f"file://{saved}", {}
    if scheme == "s3":
        base, environ = f"{server.make_bucket('saved')}/set", server.environ
        store = open_store(base.rpartition("/")[0], environ)
        for path in saved.rglob("*.*"):
            store.put(f"set/{path.relative_to(saved)}", path.read_bytes())
    file = "data-00000-of-00001.arrow"
    assert names(locate(base, "spec.dataset.train", environ), base) == [f"/train/{file}"]
    assert names(locate(base, "spec.dataset.eval", environ), base) == [f"/test/{file}"]
    assert names(locate(f"{base}/test", FIELD, environ), f"{base}/test") == [f"/{file}"]


def test_a_saved_data_set_without_the_split_names_those_it_has(saved: Path) -> None:
    shutil.rmtree(saved / "train")
    code, text = refused(f"file://{saved}")
    assert code == "SplitNotFound"
    assert f"its splits are test [SplitNotFound] -> name the folder of one: file://{saved}/test" in text


def test_a_blank_in_a_path_is_a_blank(tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_bytes(b"text\nx\n")
    assert DatasetSpec(train=f"file://{tmp_path}/a b.csv").train == f"file://{tmp_path}/a b.csv"
    for path in ("a b.csv", "a%20b.csv"):
        assert len(locate(f"file://{tmp_path}/{path}", FIELD, {})) == 1


def test_a_plain_path_is_refused_where_it_means_nothing() -> None:
    code, text = refused("data/train.jsonl")
    assert code == "PlainPath"
    assert "copy the data to s3://, or mount a volume and write file:///path" in text


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("c.jsonl", "FileNotFound", "did you mean"),
        ("deep/deeper/*.csv", "FileNotFound", "no file fits"),
        ("deep", "MixedFormats", "c.jsonl (jsonl) and e.csv (csv)"),
        ("deep/*", "MixedFormats", "c.jsonl (jsonl) and e.csv (csv)"),
    ],
)
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_what_is_not_there_or_does_not_go_together_is_refused(
    request: pytest.FixtureRequest, scheme: str, path: str, code: str, message: str
) -> None:
    environ = request.getfixturevalue("server").environ if scheme == "s3" else {}
    base = (
        f"{request.getfixturevalue('bucket')}/data" if scheme == "s3" else f"file://{request.getfixturevalue('tree')}"
    )
    seen = refused(f"{base}/{path}", environ)
    assert seen[0] == code
    assert message in seen[1]


def test_files_of_several_formats_are_taken_where_the_job_says_which(tree: Path) -> None:
    assert len(locate(f"file://{tree}/deep", FIELD, {}, "jsonl")) == 2


def test_a_folder_that_holds_only_folders_says_how_to_search_them(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.jsonl").write_bytes(ROWS)
    (tmp_path / "README.md").write_text("x")
    code, text = refused(f"file://{tmp_path}")
    assert code == "NoDataFiles"
    assert f"file://{tmp_path}/**/* for all below (there is deep/a.jsonl)" in text


@pytest.mark.parametrize(
    ("files", "both"),
    [
        (["train.jsonl", "test.jsonl"], "train.jsonl and test.jsonl"),
        (["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"], "train-00000-of-00001.parquet and val"),
        (["my_train.csv", "my_dev.csv"], "my_train.csv and my_dev.csv"),
    ],
)
def test_training_and_evaluation_data_in_one_folder_are_not_taken_for_one_split(
    tmp_path: Path, files: list[str], both: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(ROWS)
    code, text = refused(f"file://{tmp_path}")
    assert code == "SplitsInFolder"
    assert both in text


def test_what_a_saved_data_set_has_beside_its_data_is_left_out(tmp_path: Path) -> None:
    for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
        (tmp_path / name).write_bytes(b"{}")
    assert names(locate(f"file://{tmp_path}", FIELD, {}), f"file://{tmp_path}/") == ["data-00000-of-00001.arrow"]


@contextmanager
def no_root() -> Iterator[None]:
    """Root may read everything, so it is somebody else for a while."""
    was_root = os.geteuid() == 0
    if was_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if was_root:
            os.setresuid(0, 0, 0)


def test_a_file_that_may_not_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        file = Path(folder) / "a.jsonl"
        file.write_bytes(ROWS)
        file.chmod(0o600 if os.geteuid() == 0 else 0)
        with no_root():
            assert refused(f"file://{file}")[0] == "FileUnreadable"


def test_a_model_that_may_not_be_read_is_named(bert: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(bert, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o755)
        for path in Path(folder).iterdir():
            path.chmod(0o644)
        (Path(folder) / "model.safetensors").chmod(0o600 if os.geteuid() == 0 else 0)
        with no_root(), pytest.raises(ModelError) as caught:
            locate_model(ModelSpec(uri=f"file://{folder}"), {}).files(Path(folder))
    assert caught.value.problems[0].code == "ModelUnreadable"


def test_every_source_that_is_missing_is_named(tmp_path: Path) -> None:
    spec = DatasetSpec.model_validate(
        {"mix": [{"uri": f"file://{tmp_path}/a"}, {"uri": f"file://{tmp_path}/b"}], "eval": f"file://{tmp_path}/c"}
    )
    with pytest.raises(DataError) as caught:
        locate_all(spec, {})
    assert [problem.field for problem in caught.value.problems] == [
        "spec.dataset.mix[0].uri",
        "spec.dataset.mix[1].uri",
        "spec.dataset.eval",
    ]


# ---------------------------------------------------------------- fingerprints


def sources(**fields: Any) -> Sources:
    return locate_all(DatasetSpec.model_validate(fields), {})


def test_fingerprints_tell_a_change_of_files_and_weights(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/a.jsonl"
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    first = sources(train=uri)
    assert first.fingerprint == sources(train=uri).fingerprint
    assert first.fingerprint != sources(train=uri, eval=uri).fingerprint
    assert sources(mix=[{"uri": uri}]).fingerprint == first.fingerprint
    assert sources(mix=[{"uri": uri, "weight": 2}]).fingerprint != first.fingerprint
    first.check_unchanged()
    (tmp_path / "a.jsonl").write_bytes(ROWS + b"\n")
    assert first.fingerprint != sources(train=uri).fingerprint
    with pytest.raises(DataError, match="changed while it was read"):
        first.check_unchanged()


def test_a_further_file_in_a_folder_changes_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    first = sources(train=f"file://{tmp_path}")
    (tmp_path / "b.jsonl").write_bytes(ROWS)
    assert first.fingerprint != sources(train=f"file://{tmp_path}").fingerprint


# ---------------------------------------------------------------- buckets


def test_objects_are_fetched_once(server: S3Server, bucket: str, tmp_path: Path) -> None:
    (place,) = locate(f"{bucket}/data/a.jsonl", FIELD, server.environ)
    path = place.fetch(tmp_path, silent)
    assert path.read_bytes() == ROWS
    path.write_bytes(b"kept")
    assert place.fetch(tmp_path, silent).read_bytes() == b"kept"
    assert place.is_unchanged()


def test_a_file_larger_than_the_disk_is_not_begun(
    server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DatasetSpec(train=f"{bucket}/data/*.jsonl")
    found = locate_all(spec, server.environ)
    monkeypatch.setattr(places, "ROOM", 1 << 60)
    with pytest.raises(DataError, match=r"a.jsonl and 1 more files have 3.78 kB, and .* are free where") as caught:
        check(spec, Task.CAUSAL_LM, found, tmp_path / "work", seed=1)
    assert "spec.scratch.size" in caught.value.problems[0].cure
    assert not list((tmp_path / "work").iterdir())
    for place in found.train[0].files:
        place.fetch(tmp_path / "work", silent)
    assert check(spec, Task.CAUSAL_LM, found, tmp_path / "work", seed=1).good == 200, "it is there already"


@pytest.mark.parametrize("uri", ["s3://tree//a", "s3://tree/../a", "s3:///a"])
def test_a_malformed_key_is_refused(server: S3Server, uri: str) -> None:
    assert refused(uri, server.environ)[0] == "InvalidURI"


def test_a_missing_bucket_and_a_wrong_key_blame_the_data(server: S3Server) -> None:
    assert "the bucket does not exist" in refused("s3://no-such-bucket/a", server.environ)[1]
    wrong = {**server.environ, "AWS_SECRET_ACCESS_KEY": "x" * 32}
    assert "the secret does not belong" in refused("s3://tree/data/a.jsonl", wrong)[1]


def test_data_is_read_with_keys_of_its_own_that_may_only_read(server: S3Server, tmp_path: Path) -> None:
    data, models = server.make_bucket("own-data"), server.make_bucket("own-models")
    owner = open_store(data, server.environ)
    owner.put("rows.jsonl", ROWS)
    reader, trainer = server.add_user("reader"), server.add_user("trainer")
    server.allow("own-data", "reader", "s3:GetObject", "s3:ListBucket")
    server.allow("own-models", "trainer", "s3:*")
    environ = {
        **trainer,
        Env.DATA_ACCESS_KEY: reader["AWS_ACCESS_KEY_ID"],
        Env.DATA_SECRET_KEY: reader["AWS_SECRET_ACCESS_KEY"],
    }
    spec = DatasetSpec(train=f"{data}/rows.jsonl")
    with pytest.raises(StorageError, match="access is denied"):
        locate_all(spec, trainer)
    found = locate_all(spec, environ)
    assert check(spec, Task.CAUSAL_LM, found, tmp_path, seed=1).good == 100
    reading: ObjectStore = open_store(data, data_environ(environ))
    with pytest.raises(StorageError, match="access is denied"):
        reading.put("other.jsonl", b"x")
    open_store(models, environ).put("checkpoint", b"x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"AWS_ACCESS_KEY_ID": "a", "AWS_ENDPOINT_URL_S3": "e", "AWS_REGION": "r", "AWS_CA_BUNDLE": "c"}),
        (
            {Env.DATA_ACCESS_KEY: "A", Env.DATA_SECRET_KEY: "S"},
            {"AWS_ACCESS_KEY_ID": "A", "AWS_SESSION_TOKEN": None, "AWS_ENDPOINT_URL_S3": "e", "AWS_CA_BUNDLE": "c"},
        ),
        (
            {Env.DATA_ENDPOINT: "E"},
            {"AWS_ACCESS_KEY_ID": "a", "AWS_ENDPOINT_URL_S3": "E", "AWS_REGION": None, "AWS_CA_BUNDLE": None},
        ),
        (
            {Env.DATA_ENDPOINT: "E", Env.DATA_REGION: "R", Env.DATA_CA: "C", Env.DATA_SESSION_TOKEN: "T"},
            {"AWS_ENDPOINT_URL_S3": "E", "AWS_REGION": "R", "AWS_CA_BUNDLE": "C", "AWS_SESSION_TOKEN": "T"},
        ),
    ],
    ids=["none of its own", "keys", "an endpoint", "all"],
)
def test_the_environment_of_data(given: dict[str, str], expected: dict[str, str | None]) -> None:
    of_the_job = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
        "AWS_ENDPOINT_URL_S3": "e",
        "AWS_REGION": "r",
        "AWS_CA_BUNDLE": "c",
    }
    made = data_environ({**of_the_job, **given})
    assert {name: made.get(name) for name in expected} == expected


# ---------------------------------------------------------------- the hub


@pytest.mark.parametrize("revision", ["", "@v1", "@refs/convert/parquet", "@commit"])
def test_a_file_of_the_hub_is_pinned_and_fetched_once(hub: Hub, tmp_path: Path, revision: str) -> None:
    environ = {"HF_ENDPOINT": hub.endpoint}
    given = f"@{hub.sha('team/rows')}" if revision == "@commit" else revision
    (place,) = locate(f"hf://datasets/team/rows{given}/deep/c.jsonl", FIELD, environ)
    assert place.size == len(ROWS)
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    hub.seen.clear()
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert hub.seen == []
    (other,) = locate("hf://datasets/team/rows/deep/c.jsonl", FIELD, environ)
    assert other.fingerprint == place.fingerprint


@pytest.mark.parametrize(
    ("uri", "code", "message"),
    [
        ("hf://datasets/team/none/x.jsonl", "DatasetNotFound", "is no data set on the hub, or is private"),
        ("hf://datasets/team/rows@v9/a.jsonl", "RevisionNotFound", "has no such revision"),
        ("hf://datasets/team/rows/x.jsonl", "FileNotFound", "it has a.jsonl, b.jsonl, deep/c.jsonl ..."),
        ("hf://datasets/team/rows/x*.jsonl", "FileNotFound", "correct the pattern"),
        ("hf://datasets/rows", "InvalidURI", "write hf://datasets/organisation/name"),
        ("hf://team/rows/x.jsonl", "InvalidURI", "names no data set of the hub"),
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
    (place,) = locate("hf://datasets/team/gated/a.jsonl", FIELD, {**environ, "HF_TOKEN": hub.token})
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
    found = locate(uri, field, {"HF_ENDPOINT": hub.endpoint})
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
        assert len(locate("team/carded", FIELD, {**environ, "HF_TOKEN": hub.token})) == 1
    finally:
        hub.gated.remove("team/carded")


def test_a_hub_that_does_not_answer_is_named() -> None:
    code, text = refused("hf://datasets/team/rows/a.jsonl", {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert code == "HubFailed"
    assert "check the connection to the hub (HF_ENDPOINT), or copy the data to s3://" in text


# ---------------------------------------------------------------- the web


def at(site: Web, path: str, content: bytes = ROWS, tag: str | None = '"1"') -> str:
    site.files[path] = content
    if tag:
        site.tags[path] = tag
    return site.address + path


def test_a_file_of_the_web_is_fetched_without_its_query_in_any_name(site: Web, tmp_path: Path) -> None:
    uri = at(site, "/data/rows.jsonl") + "?signature=secret"
    (place,) = locate(uri, FIELD, {})
    path = place.fetch(tmp_path, silent)
    assert (path.name, path.read_bytes(), place.size) == ("rows.jsonl", ROWS, len(ROWS))
    assert "secret" not in place.name + str(path)
    assert all("signature=secret" in asked for asked, _ in site.seen)
    assert place.is_unchanged()
    (again,) = locate(site.address + "/data/rows.jsonl?signature=other", FIELD, {})
    assert again.fingerprint == place.fingerprint


def test_a_broken_download_goes_on_where_it_broke(site: Web, tmp_path: Path) -> None:
    (place,) = locate(at(site, "/x.jsonl"), FIELD, {})
    site.breaks["/x.jsonl"] = [500, 300]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert [asked for _, asked in site.seen] == [None, None, "bytes=500-", "bytes=800-"]


@pytest.mark.parametrize("tag", [None, 'W/"1"'])
def test_without_a_strong_tag_a_broken_download_begins_again(site: Web, tmp_path: Path, tag: str | None) -> None:
    (place,) = locate(at(site, "/x.jsonl", tag=tag), FIELD, {})
    site.breaks["/x.jsonl"] = [500]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS
    assert [asked for _, asked in site.seen] == [None, None, None]


def test_a_server_that_knows_no_ranges_begins_again(site: Web, tmp_path: Path) -> None:
    (place,) = locate(at(site, "/x.jsonl"), FIELD, {})
    site.ranges = False
    site.breaks["/x.jsonl"] = [500]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_tells_no_size_is_read_to_its_end(site: Web, tmp_path: Path) -> None:
    site.lengths = False
    (place,) = locate(at(site, "/x.jsonl"), FIELD, {})
    assert place.size is None
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_fails_now_and_then_is_asked_again(site: Web, tmp_path: Path) -> None:
    uri = at(site, "/x.jsonl")
    site.statuses["/x.jsonl"] = [503, 429]
    (place,) = locate(uri, FIELD, {})
    site.statuses["/x.jsonl"] = [500, 502]
    assert place.fetch(tmp_path, silent).read_bytes() == ROWS


def test_a_server_that_always_sends_less_than_it_announces_is_given_up(site: Web, tmp_path: Path) -> None:
    (place,) = locate(at(site, "/x.jsonl", tag=None), FIELD, {})
    site.breaks["/x.jsonl"] = [500] * 10
    with pytest.raises(StorageError, match="cannot be fetched after 6 attempts"):
        place.fetch(tmp_path, silent)
    assert not list(tmp_path.rglob("x.jsonl"))


def test_a_file_that_changes_meanwhile_is_told(site: Web, tmp_path: Path) -> None:
    (place,) = locate(at(site, "/x.jsonl"), FIELD, {})
    site.tags["/x.jsonl"] = '"2"'
    assert not place.is_unchanged()
    with pytest.raises(DataError, match="changed while it was read"):
        place.fetch(tmp_path, silent)


def test_a_file_without_a_tag_is_never_taken_for_one_seen_before(site: Web) -> None:
    uri = at(site, "/x.jsonl", tag=None)
    assert locate(uri, FIELD, {})[0].fingerprint != locate(uri, FIELD, {})[0].fingerprint


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/x", 401, "AccessDenied", "asks for a login (the server answers 401)"),
        ("/x", 403, "AccessDenied", "may not be read (the server answers 403)"),
        ("/x?signature=s", 403, "AccessDenied", "the signature may have expired"),
        ("/x", 404, "FileNotFound", "is not there"),
        ("/x", 418, "WebRefused", "the server answers 418"),
        ("/x", 500, "WebFailed", "cannot be fetched after 6 attempts: the server answers 500"),
    ],
)
def test_what_a_server_refuses_is_told(site: Web, path: str, status: int, code: str, message: str) -> None:
    site.statuses["/x"] = [status] * 6
    seen = refused(site.address + path)
    assert seen[0] == code
    assert message in seen[1]
    assert "signature=s" not in seen[1]


def test_addresses_that_lead_nowhere_are_told(site: Web) -> None:
    site.redirects |= {"/a": "/b", "/b": "/a", "/c": "/x.jsonl", "/d": "http://example.invalid/x", "/e": "ftp://x/y"}
    at(site, "/x.jsonl")
    assert refused(f"{site.address}/a")[0] == "RedirectLoop"
    assert len(locate(f"{site.address}/c", FIELD, {})) == 1
    assert refused("http://127.0.0.1:9/x.jsonl")[0] == "WebFailed"
    assert refused(f"{site.address}/*.jsonl")[0] == "InvalidURI"
    assert refused("http://example.invalid/x.jsonl")[0] == "UnsafeURI"
    assert refused(f"{site.address}/e")[0] == "RedirectLoop"


def test_a_page_instead_of_a_file_is_told(site: Web, tmp_path: Path) -> None:
    spec = DatasetSpec.model_construct(train=at(site, "/x.jsonl", b"<!doctype html>\n<html></html>"))
    with pytest.raises(DataError, match="the file is a web page"):
        check(spec, Task.CAUSAL_LM, locate_all(spec, {}), tmp_path, seed=1)


def test_a_shells_home_is_no_path() -> None:
    assert "~ is a shell's" in refused("file://~/x.jsonl")[1]


# ---------------------------------------------------------------- all of it, through the stage


def test_a_mix_of_sources_is_prepared_once(hub: Hub, server: S3Server, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a text\nanother text\n")
    bucket = server.make_bucket("mixed")
    open_store(bucket, server.environ).put("rows/part-0.jsonl.gz", gzip.compress(ROWS))
    mix = [
        {"uri": f"{bucket}/rows", "weight": 2},
        {"uri": "hf://datasets/team/rows/**/*.jsonl", "weight": 0.5},
        {"uri": f"file://{tmp_path}/rows.txt"},
    ]
    spec = {
        "model": {"uri": f"file://{llama}"},
        "dataset": {"mix": mix, "eval": {"split": 0.1}},
        "method": {"type": "lora"},
        "storage": {"uri": f"file://{tmp_path}/store"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "mixed"}}
    job = FineTuneJob.model_validate_json(json.dumps({**head, "spec": spec}))
    store = open_store(f"file://{tmp_path}/store")
    environ = {**server.environ, "HF_ENDPOINT": hub.endpoint}
    told: list[str] = []
    first = prepare(job, store, "one", tmp_path / "work", environ, told.append).plan.dataset
    assert first.eval is not None
    # of 100 in the bucket, 400 on the hub and 2 here: five copies each of 100 rows, which stay together
    assert first.eval.rows == 51
    assert 300 < first.train.rows < 420  # twice 90, half of 360, and two
    again = prepare(job, store, "two", tmp_path / "other", environ, told.append)
    assert "data set reused, not read again" in again.result.note
    assert not (tmp_path / "other" / "data").exists()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(SpecError, match=r"gs://b/x cannot be read; file://, s3://, hf://, https:// can"):
        locate("gs://b/x", FIELD, {})
