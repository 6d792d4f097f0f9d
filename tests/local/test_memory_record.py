"""The memory model against what was measured on CPU (benchmarks/memory.json): a change for the worse fails here."""

import importlib.util
import json
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORD: dict[str, Any] = json.loads((BENCHMARKS / "memory.json").read_text())
COUNTED = [sample for sample in RECORD["samples"] if sample["counts"]]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.append(str(BENCHMARKS))  # it imports its neighbour
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARKS / "memory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.matrix)])
def test_what_is_predicted_today_is_near_to_what_was_measured(benchmark: ModuleType, every: int) -> None:
    errors = {}
    asked = {sample["case"] for sample in COUNTED[::every]}
    for case in benchmark.recorded():
        if str(case) in asked:
            predicted, _ = benchmark.predict_case(case)
            errors[str(case)] = predicted / max(benchmark.phases_of(case).values()) - 1
    counted = list(errors.values())
    assert len(counted) == len(asked) >= 6
    assert statistics.median(abs(error) for error in counted) <= 0.10
    assert min(counted) >= -0.15, errors


def test_with_its_margin_the_prediction_covers_a_worker_with_the_c_librarys_own_settings(benchmark: ModuleType) -> None:
    measured = {sample["case"]: sample["measured_mib"] for sample in RECORD["default_allocator"]}
    assert len(measured) >= 6
    for case in benchmark.GRID:
        if str(case) in measured:
            predicted, _ = benchmark.predict_case(case, with_margin=True)
            assert predicted / benchmark.MIB >= measured[str(case)], str(case)


def test_the_record_covers_families_methods_stages_and_sizes() -> None:
    assert len(COUNTED) >= 24
    for name, least in (("family", 4), ("method", 2), ("stage", 4), ("ranks", 2), ("checkpointing", 2), ("bf16", 2)):
        assert len(Counter(sample[name] for sample in COUNTED)) >= least, name
    assert all(sample["measured_mib"] >= 512 for sample in COUNTED)
    assert RECORD["cases"] == len(COUNTED)
