"""The benchmark for a GPU: refuses where there is none, and its code runs on a CPU with a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, env=environment)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_a_sentence_says_so() -> None:
    done = benchmark()
    assert (done.returncode, done.stdout) == (2, "")
    assert "no NVIDIA GPU" in done.stderr


@pytest.mark.matrix
def test_every_way_of_the_benchmark_trains_a_tiny_model() -> None:
    """Matrix, because importing TRL takes half a minute."""
    done = benchmark("--tiny")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["method"], line["trainer"], line["head"]) for line in lines} == {
        ("lora", "ours", "labelled"),
        ("lora", "ours", "chunked"),
        ("lora", "trl", "labelled"),
        ("full", "ours", "labelled"),
        ("qlora", "ours", "labelled"),
    }
    assert all(line["tokens_per_second"] > 0 and line["operations_per_token"] > 0 for line in lines)
