"""Where data comes from: files, patterns and folders, on this machine, in buckets and on the hub."""

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

from finetune_api.errors import DataError, ModelError, SpecError
from finetune_api.v1alpha1 import DatasetSpec, FineTuneJob, ModelSpec
from finetune_trainer.prepare.data.locate import locate_files
from finetune_trainer.prepare.data.sources import Sources, locate_all
from finetune_trainer.prepare.models import locate_model
from finetune_trainer.prepare.prepare_stage import prepare
from finetune_trainer.storage import open_store
from tests.local.source_tree import FIELD, ROWS, fill_bucket, names, refused, silent, write_tree
from tests.support.hub import Hub, start_hub
from tests.support.s3 import S3Server, start_s3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with start_s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return fill_bucket(server)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def hub(tree: Path) -> Iterator[Hub]:
    with start_hub({}, {"team/rows": tree}) as running:
        running.refs |= {"v1", "refs/convert/parquet"}
        yield running


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
    assert names(locate_files(base + path, FIELD, environ), base) == CHOICES[path]


def test_a_relative_path_begins_at_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(locate_files("file://deep/*.csv", FIELD, {}), "file://") == ["deep/e.csv"]
    assert names(locate_files("file://.", FIELD, {}), "file://") == ["a.jsonl", "b.jsonl"]


def test_a_name_with_wildcards_in_it_is_a_name_where_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "rows [1].jsonl").write_bytes(ROWS)
    assert len(locate_files(f"file://{tmp_path}/rows%20[1].jsonl", FIELD, {})) == 1


def test_a_link_to_a_file_elsewhere_is_followed(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tree / "a.jsonl")
    (place,) = locate_files(f"file://{tmp_path}/*.jsonl", FIELD, {})
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
    assert names(locate_files(f"{base}**/*.jsonl", FIELD, {}), base) == [
        "link/c.jsonl",
        "link/deeper/d.jsonl",
        "own/x.jsonl",
    ]


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
    assert names(locate_files(base, "spec.dataset.train", environ), base) == [f"/train/{file}"]
    assert names(locate_files(base, "spec.dataset.eval", environ), base) == [f"/test/{file}"]
    assert names(locate_files(f"{base}/test", FIELD, environ), f"{base}/test") == [f"/{file}"]


def test_a_saved_data_set_without_the_split_names_those_it_has(saved: Path) -> None:
    shutil.rmtree(saved / "train")
    code, text = refused(f"file://{saved}")
    assert code == "SplitNotFound"
    assert f"its splits are test [SplitNotFound] -> name the folder of one: file://{saved}/test" in text


def test_a_blank_in_a_path_is_a_blank(tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_bytes(b"text\nx\n")
    assert DatasetSpec(train=f"file://{tmp_path}/a b.csv").train == f"file://{tmp_path}/a b.csv"
    for path in ("a b.csv", "a%20b.csv"):
        assert len(locate_files(f"file://{tmp_path}/{path}", FIELD, {})) == 1


def test_a_plain_path_is_refused_where_it_means_nothing() -> None:
    code, text = refused("data/train.jsonl")
    assert code == "PlainPath"
    assert "copy the data to s3://, or mount a volume and write file:///path" in text


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("c.jsonl", "FileNotFound", "did you mean"),
        ("deep/deeper/*.csv", "FileNotFound", "no file matches"),
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
    assert len(locate_files(f"file://{tree}/deep", FIELD, {}, "jsonl")) == 2


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
    assert names(locate_files(f"file://{tmp_path}", FIELD, {}), f"file://{tmp_path}/") == ["data-00000-of-00001.arrow"]


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


def test_a_shells_home_is_no_path() -> None:
    assert "only a shell replaces ~" in refused("file://~/x.jsonl")[1]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(SpecError, match=r"gs://b/x cannot be read; file://, s3://, hf://, https:// can"):
        locate_files("gs://b/x", FIELD, {})


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
