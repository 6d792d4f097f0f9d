"""`finetune run --output DIR`: the artifact in a folder of the user's; nothing there is ever overwritten."""

from pathlib import Path

import pytest

from finetune_api.errors import SpecError
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.run.delivery import Output
from finetune_trainer.run.local_run import LocalJob
from finetune_trainer.storage import upload_tree
from tests.unit.test_api_parse import job

FILES = {"README.md": "# card", "adapter_config.json": "{}"}


@pytest.fixture
def local(tmp_path: Path) -> LocalJob:
    return LocalJob.open(parse_job(job(spec__storage={"uri": f"file://{tmp_path}/store"})), tmp_path / "work")


def only(folder: Path, local: LocalJob) -> Output:
    [output] = Output.of_job(folder, local)
    return output


def export(local: LocalJob, uid: str, folder: Path, step: int = 1) -> None:
    """An artifact as the export stage leaves it."""
    made = folder / f"made-{uid}-{step}"
    made.mkdir()
    for name, text in FILES.items():
        (made / name).write_text(f"{text} {step}")
    prefix = f"{local.run_prefix(uid)}artifacts/adapter/"
    upload_tree(local.store, made, prefix, "artifact", {"kind": "adapter", "step": step, "metrics": {}})


def test_the_artifact_is_put_below_the_folder_and_found_there_again(local: LocalJob, tmp_path: Path) -> None:
    output = only(tmp_path / "new/out", local)
    output.check("a-1")
    export(local, "a-1", tmp_path)
    target = output.deliver("a-1")
    assert target == tmp_path / "new/out/adapter"
    assert {path.name for path in target.iterdir()} == {*FILES, "MANIFEST.json"}
    assert (target / "README.md").read_text() == "# card 1"
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    output.check("a-1")
    assert output.deliver("a-1") == target, "the same command again is no conflict"
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before
    assert [path.name for path in target.parent.iterdir()] == ["adapter"], "nothing unfinished is left"


def test_other_files_of_the_folder_stay(local: LocalJob, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    output = only(tmp_path, local)
    export(local, "a-1", tmp_path)
    output.deliver("a-1")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("there", ["another run", "a file of the user's", "a file instead of a folder"])
def test_what_is_there_already_is_never_overwritten(local: LocalJob, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    output = only(out, local)
    if there == "another run":
        export(local, "a-1", tmp_path)
        output.deliver("a-1")
    elif there == "a file of the user's":
        (out / "adapter").mkdir()
        (out / "adapter/mine.txt").write_text("mine")
    else:
        (out / "adapter").write_text("mine")
    before = sorted(str(path) for path in out.rglob("*"))
    export(local, "b-1", tmp_path, step=2)
    for again in (lambda: output.check("b-1"), lambda: output.deliver("b-1")):
        with pytest.raises(SpecError, match="existing files are never overwritten"):
            again()
    assert sorted(str(path) for path in out.rglob("*")) == before


def test_an_empty_folder_is_taken(local: LocalJob, tmp_path: Path) -> None:
    (tmp_path / "out/adapter").mkdir(parents=True)
    export(local, "a-1", tmp_path)
    assert only(tmp_path / "out", local).deliver("a-1").is_dir()


def test_a_folder_that_cannot_be_written_is_told_first(local: LocalJob) -> None:
    with pytest.raises(SpecError, match=r"--output: .*cannot be written"):
        Output.of_job(Path("/proc/none"), local)
