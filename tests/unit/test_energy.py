"""The energy of a run: counters of GPUs and processors, their sum over all starts of the agents, and how it is told."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from finetune_api.beats import Beat, CheckpointId, GenerationRecord, Progress
from finetune_api.contract import Env, File
from finetune_api.energy import Energy, RunEnergy
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent.energy_meter import EnergyCounter, EnergyMeter, gpu_counters, processor_counters
from finetune_trainer.agent.history import History
from finetune_trainer.agent.roster import Gang, hear
from finetune_trainer.agent.scribe import Scribe
from finetune_trainer.export.energy_figures import energy_facts, energy_text, run_energy
from finetune_trainer.export.evidence.annex import annex
from finetune_trainer.export.run_report.run_page import render_run
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan
from tests.support.reported_run import eventful_run, planned_run

GPUS = {"GPU-a": 1_000_000, "GPU-b": 5_000, "GPU-c": 9_000}  # millijoules


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A module like pynvml on a machine with three GPUs; returns their counters."""
    counters = dict(GPUS)

    def read(handle: str) -> int:
        if handle not in counters:
            raise RuntimeError("Not Supported")
        return counters[handle]

    fake = ModuleType("fake_nvml")
    vars(fake).update(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(GPUS),
        nvmlDeviceGetHandleByIndex=lambda number: list(GPUS)[number],
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, "fake_nvml", fake)
    return counters


def zone(powercap: Path, name: str, kind: str, value: int, highest: int = 1_000_000) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    for file, text in (("name", kind), ("energy_uj", value), ("max_energy_range_uj", highest)):
        (folder / file).write_text(f"{text}\n")
    return folder / "energy_uj"


def test_the_first_visible_gpus_are_those_of_the_ranks(nvml: dict[str, int]) -> None:
    def joules(ranks: int, visible: str | None) -> list[float]:
        found = list(gpu_counters(ranks, visible, "fake_nvml"))
        for one in found:
            one.update()
        for name in GPUS:
            nvml[name] += 1000 * (1 + list(GPUS).index(name))
        for one in found:
            one.update()
        return [one.joules for one in found]

    assert joules(2, None) == [1.0, 2.0]
    assert joules(8, None) == [1.0, 2.0, 3.0]
    assert joules(1, "2,0") == [3.0]
    assert joules(2, "GPU-b, GPU-a") == [2.0, 1.0]
    assert joules(2, "") == []
    assert joules(1, "MIG-1") == [], "a slice of a GPU has no counter"
    assert list(gpu_counters(2, None, "no_such_module_of_nvml")) == []


def test_a_counter_that_wraps_or_begins_anew_loses_nothing_that_is_known() -> None:
    readings = iter([900, 950, 30, OSError("away"), 40])

    def read() -> int:
        value = next(readings)
        if isinstance(value, OSError):
            raise value
        return value

    counter = EnergyCounter(read, unit=1.0, wraps_at=1000)
    for _ in range(5):
        counter.update()
    assert counter.joules == 50 + 80 + 10
    anew = EnergyCounter(iter([900, 20]).__next__, unit=1.0)
    anew.update()
    anew.update()
    assert anew.joules == 20


def test_only_packages_that_can_be_read_count_and_only_on_a_machine_of_ones_own(
    tmp_path: Path, nvml: dict[str, int]
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:1", "psys", 5)
    (tmp_path / "intel-rapl:2").mkdir()
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5)
    assert len(list(processor_counters(tmp_path))) == 1

    def meter(node: int, **environ: str) -> EnergyMeter:
        return EnergyMeter.of_node(node, 2, environ, tmp_path, "fake_nvml")

    pod, local, second = meter(1), meter(0, **{Env.LOCAL: "1"}), meter(1, **{Env.LOCAL: "1"})
    for one in (pod, local, second):
        one.update()
    nvml["GPU-a"] += 4_000
    package.write_text("1000\n")
    for one in (pod, local, second):
        one.update()
    assert pod.used == Energy(gpus=4.0, devices=2)
    assert local.used is not None
    assert (local.used.gpus, local.used.machine) == (4.0, pytest.approx(0.002))
    assert second.used is None, "the first node of a local run measures the machine for all"
    assert EnergyMeter.of_node(0, 1, {}, tmp_path / "none", "no_such_module_of_nvml").used is None


def test_the_energy_of_a_run_is_the_sum_over_nodes_and_over_all_starts_of_their_agents() -> None:
    scribe, gang = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL)), Gang(nodes=2, last_step=9, generation=1)

    def beat(node: int, incarnation: str, joules: float | None) -> None:
        nonlocal gang
        energy = None if joules is None else Energy(gpus=joules, devices=4)
        told = Beat(node=node, incarnation=incarnation, host="h", generation=1, state="ready", energy=energy)
        gang = hear(gang, Beat.model_validate_json(told.model_dump_json(exclude_defaults=True)), 0.0)
        scribe.on_beat(told, gang)

    beat(0, "a", None)
    assert scribe.progress(gang, 0.0).energy is None
    assert "energy" not in scribe.progress(gang, 0.0).model_dump_json(), "an older operator refuses what is new"
    for node, incarnation, joules in ((0, "a", 10.0), (1, "b", 5.0), (0, "a", 30.0), (1, "c", 2.0), (1, "b", 9.0)):
        beat(node, incarnation, joules)
    assert scribe.progress(gang, 0.0).energy == Energy(gpus=37.0, devices=8)

    assert scribe.history.safe_energy == RunEnergy(), "a beat writes no generation.json"
    scribe.on_commit(CheckpointId(step=1, generation=1))
    record = GenerationRecord(generation=1, leader="", incarnation="", energy=scribe.history.safe_energy)
    later = Scribe(make_plan(Task.CAUSAL_LM, MethodType.FULL))
    later.on_takeover(History.of(GenerationRecord.model_validate_json(record.to_json())))
    assert later.progress(gang, 0.0).energy == Energy(gpus=37.0, devices=8), "the next leader continues"
    assert "energy" not in GenerationRecord(generation=1, leader="", incarnation="").to_json()
    assert RunEnergy().total is None


def test_the_papers_tell_the_energy_or_that_it_was_not_measured(tmp_path: Path) -> None:
    energy = Energy(gpus=7.2e6, devices=8, machine=3.6e5)
    said = "2 kWh of 8 GPUs, by NVML; 0.1 kWh of the processors of the whole machine, by RAPL"
    assert energy_text(energy) == said
    assert energy_text(None) == energy_text(Energy()) == "not measured"
    assert energy_facts(energy) == {"gpusJoules": 7.2e6, "gpus": 8, "machineJoules": 3.6e5}
    assert energy_facts(None) == "not measured"
    progress = eventful_run().progress
    assert isinstance(progress, Progress)
    assert said in render_run(eventful_run(progress=progress.model_copy(update={"energy": energy})))
    facts = SimpleNamespace(step=1, metrics={}, versions={}, created="2026-01-01")
    draft = annex(planned_run(), **vars(facts), energy=energy)
    assert f"**Energy**: {said}. " in draft
    assert "**Energy**: not measured. " in annex(planned_run(), **vars(facts))
    store = FolderStore(tmp_path)
    assert run_energy(store, "run/") is None
    store.put("run/" + File.DONE, progress.model_copy(update={"energy": energy}).to_json().encode())
    assert run_energy(store, "run/") == energy
