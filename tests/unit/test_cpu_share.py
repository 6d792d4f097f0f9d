"""The control group for tests that give way, on both versions of control groups and without any."""

from pathlib import Path

import pytest

from tests.support.cpu_share import SmallShare


@pytest.fixture(params=[("", "cpu.weight", "50"), ("cpu", "cpu.shares", "512")])
def groups(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, str]:
    """A root as the kernel shows it: each new folder has the files of its controller."""
    folder, setting, value = request.param
    (tmp_path / folder).mkdir(exist_ok=True)
    mkdir = Path.mkdir

    def make(path: Path, *args: object, **kwargs: object) -> None:
        mkdir(path)
        if path.parent == tmp_path / folder:
            (path / setting).write_text("")

    monkeypatch.setattr(Path, "mkdir", make)
    return tmp_path, setting, value


def test_the_group_has_half_the_usual_share_and_takes_processes(groups: tuple[Path, str, str]) -> None:
    root, setting, value = groups
    share = SmallShare("tests", root)
    assert share.folder is not None
    assert (share.folder / setting).read_text() == value
    share.add(123)
    assert (share.folder / "cgroup.procs").read_text() == "123"


def test_without_control_groups_nothing_happens(tmp_path: Path) -> None:
    share = SmallShare("tests", tmp_path / "missing")
    assert share.folder is None
    share.add(123)
    share.close()


def test_a_folder_that_is_no_control_group_is_left_as_it_was(tmp_path: Path) -> None:
    assert SmallShare("tests", tmp_path).folder is None
    assert not list(tmp_path.iterdir())
