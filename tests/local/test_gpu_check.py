"""The GPU check, rehearsed on a CPU with tiny shapes: every kind of case runs, so that a GPU finds it ready."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.record import machine

ROOT = Path(__file__).resolve().parents[2]
no_gpu = pytest.mark.skipif(machine() is not None, reason="there is a GPU")


def program(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=900, env=environment
    )


def rehearsed(folder: Path, only: str) -> list[dict[str, Any]]:
    """The lines of a rehearsal in which every case passes."""
    done = program("-m", "tests.gpu", "--cpu-rehearsal", "--results", str(folder), "--only", only)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    return lines


@no_gpu
@pytest.mark.parametrize("command", [["-m", "tests.gpu"], ["benchmarks/gpu.py"], ["benchmarks/gpu_memory.py"]], ids=str)
def test_without_a_gpu_nothing_is_measured_and_a_sentence_says_so(command: list[str]) -> None:
    done = program(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no NVIDIA GPU" in done.stderr


def test_a_rehearsal_runs_a_case_of_every_kind_and_records_what_it_expected_and_saw(tmp_path: Path) -> None:
    only = "end-to-end/classification,exactness/batches,exactness/attention,speed,memory,limits"
    *lines, summary = rehearsed(tmp_path, only)
    assert {line["case"].partition("/")[0] for line in lines} == {
        "end-to-end",
        "exactness",
        "speed",
        "memory",
        "limits",
    }
    for line in lines:
        assert line["outcome"] == "passed"
        assert line["expects"]
        assert line["seconds"] > 0
        assert line["figures"]
        assert line["versions"]["torch"]
        assert line["card"].startswith("none")
    assert summary["passed"] == len(lines)
    record = json.loads((tmp_path / "none.json").read_text())
    assert [case["case"] for case in record["cases"]] == [line["case"] for line in lines]
    assert record["machine"]["versions"]["transformers"]


@pytest.mark.matrix
def test_a_rehearsal_passes_every_case(tmp_path: Path) -> None:
    *lines, summary = rehearsed(tmp_path, "")
    assert summary["passed"] == len(lines) > 15


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["gpu", "gpu_memory"])
def test_a_benchmark_for_gpus_runs_its_tiny_shapes_on_a_cpu(name: str) -> None:
    done = program(f"benchmarks/{name}.py", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert isinstance(json.loads(done.stdout.splitlines()[-1]), dict)
