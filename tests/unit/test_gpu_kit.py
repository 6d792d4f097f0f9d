"""The GPU check's own logic: what the kit carries, and what becomes of a case that fails, hangs or dies."""

import json
import os
import re
import signal
import time
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.gpu import kit, machine
from tests.gpu.case import Bench, Case, Result, Runner
from tests.local.agents import wait_for

ROOT = Path(__file__).resolve().parents[2]


def names(lines: list[str]) -> set[str]:
    return {kit.normalised(re.split(r"[=\[ ]", line, maxsplit=1)[0]) for line in lines}


def test_the_kit_carries_what_the_image_has_and_the_machine_lacks() -> None:
    carried = names(kit.lacking())
    assert {"deepspeed", "pydantic", "boto3", "trl", "liger-kernel", "bitsandbytes", "peft"} <= carried
    assert not carried & (machine.PRESENT - machine.CARRIED)
    assert not {name for name in carried if name.startswith("nvidia-") or name in ("torch", "transformers")}
    assert all("--hash=sha256:" in line for line in kit.lacking())


def test_the_machines_versions_are_within_the_ranges_that_we_support() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {one.name: one for one in map(Requirement, project["optional-dependencies"]["trainer"])}
    lines = (machine.LISTED.read_text()).splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert {"torch", "transformers"} <= pins.keys()
    for name, version in pins.items():
        assert name not in asked or asked[name].specifier.contains(version), f"{name} {version}: {asked[name]}"


def test_the_lowest_versions_are_the_lower_bounds_of_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {name: line.split("==")[1].split()[0] for name, line in kit.pinned(kit.LOWEST).items()}
    given = [*project["dependencies"], *project["optional-dependencies"]["trainer"]]
    for text in given:
        asked = Requirement(text)
        lower = next(one.version for one in asked.specifier if one.operator == ">=")
        seen = locked[kit.normalised(asked.name)]
        assert seen == lower or seen.startswith(f"{lower}.") or asked.name in OTHERS, f"{text}: {seen} is tested"


# A wheel for Python 3.12, or what the machine's other packages ask for, raises these above our bound.
OTHERS = {"pyarrow", "zstandard", "jinja2", "tensorboardx"}


def test_a_wheel_of_bitsandbytes_keeps_one_cuda_version_and_a_true_record(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in ("cuda118", "cuda130", "cpu", "rocm62"):
            made.writestr(f"bitsandbytes/libbitsandbytes_{name}.so", name)
        made.writestr("bitsandbytes/__init__.py", "")
        made.writestr("bitsandbytes-1.0.dist-info/RECORD", "bitsandbytes/libbitsandbytes_cuda118.so,,\n")
    kit.trim(wheel)
    with zipfile.ZipFile(wheel) as made:
        record = made.read("bitsandbytes-1.0.dist-info/RECORD").decode()
        found = set(made.namelist())
    assert {line.split(",")[0] for line in record.splitlines()} == found
    assert {Path(name).name for name in found if name.endswith(".so")} == set(kit.BITSANDBYTES_KEPT)


def test_a_wheel_without_the_machines_cuda_version_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("bitsandbytes/libbitsandbytes_cuda118.so", "")
        made.writestr("bitsandbytes-1.0.dist-info/RECORD", "")
    with pytest.raises(SystemExit, match="no library for CUDA"):
        kit.trim(wheel)


# ---------------------------------------------------------------- cases


def passes(bench: Bench) -> None:
    bench.note(value=3)
    bench.within("value", 3.0, 3.1, absolute=0.2)


def misses(bench: Bench) -> None:
    bench.within("value", 3.0, 4.0, relative=0.01)
    bench.expect(False, "and another")


def raises(bench: Bench) -> None:
    bench.note(value=1)
    raise ValueError("no such thing")


def dies(bench: Bench) -> None:
    bench.note(value=2)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(bench: Bench) -> None:
    bench.note(value=4)
    signal.pause()


def run(tmp_path: Path, *cases: Case, until: float = 60) -> dict[str, Result]:
    found: dict[str, Result] = {}
    end = time.monotonic() + until
    runner = Runner(tmp_path, tiny=True, until=end, beside=2, on_result=lambda one: found.update({one.case.name: one}))
    runner.run(cases)
    return found


def test_a_case_that_fails_hangs_or_dies_leaves_its_figures_and_the_other_cases(tmp_path: Path) -> None:
    works = {"passes": passes, "misses": misses, "raises": raises, "dies": dies, "hangs": hangs}
    cases = [Case(name, "it", work, 0.5 if name == "hangs" else 30, name == "dies") for name, work in works.items()]
    found = run(tmp_path, *cases)
    outcomes = {name: result.outcome for name, result in found.items()}
    assert outcomes == {"passes": "passed", "misses": "failed", "raises": "error", "dies": "error", "hangs": "timeout"}
    assert found["passes"].figures == {"value": 3, "value_difference": 0.1}
    assert "value: 3, expected 4 within 0.04; and another" in found["misses"].reason
    assert found["raises"].figures == {"value": 1}
    assert found["raises"].reason == "ValueError: no such thing"
    assert found["dies"].figures == {"value": 2}
    assert found["hangs"].figures == {"value": 4}
    assert json.dumps(found["hangs"].line())


def test_a_case_without_time_left_is_skipped_and_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, Case("passes", "it", passes, 100), until=5)
    assert found["passes"].outcome == "skipped"
    assert "were left" in found["passes"].reason


def test_a_case_that_is_alone_shares_the_machine_with_no_other(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    def watches(bench: Bench) -> None:
        mine = seen / bench.folder.name
        mine.touch()
        if mine.name in ("one", "two"):  # each waits for the other
            wait_for("both", lambda: True if {"one", "two"} <= {path.name for path in seen.iterdir()} else None, 20)
        else:
            bench.note(others=len(list(seen.iterdir())) - 1)
            mine.unlink()

    def leaves(result: Result) -> None:
        (seen / result.case.name).unlink(missing_ok=True)
        found[result.case.name] = result

    found: dict[str, Result] = {}
    cases = [Case(name, "it", watches, 30, alone=name == "alone") for name in ("one", "two", "alone", "three")]
    scratch = tmp_path / "scratch"
    Runner(scratch, tiny=True, until=time.monotonic() + 60, beside=2, on_result=leaves).run(cases)
    assert found["alone"].figures == {"others": 0}
    assert found["three"].figures == {"others": 0}
    assert {result.outcome for result in found.values()} == {"passed"}


def test_every_page_that_speaks_of_measurements_on_a_gpu_has_a_record_for_it() -> None:
    recorded = " ".join(path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.json"))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for card in re.findall(r"measured on (?:an? |one )?(?:NVIDIA )?([AHLB]\d{2,3}\w*)", page.read_text()):
            assert card.lower() in recorded, f"{page.name} says `measured on {card}`, and benchmarks/gpu has no record"
