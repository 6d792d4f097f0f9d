"""What a run tells while it trains: figures of each step, TensorBoard's events, outputs in storage, trackers."""

import math
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode, File, checkpoint_name
from finetune_api.errors import StorageError
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent.outputs import Outputs, put_all
from finetune_trainer.storage import FolderStore
from finetune_trainer.storage.base import storage_problem
from tests.local.agents import STEPS, Agents
from tests.local.harness import Bench, make_plan, orders, write_dataset
from tests.support.events import scalars

PEAK, PER_TOKEN = 1e12, 1e6


def test_every_step_tells_its_speed_its_memory_and_its_wait_and_a_resumed_run_goes_on_in_the_same_chart(
    bench: Bench, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, peak_flops=PEAK, flops_per_token=PER_TOKEN)
    first = bench.run(plan, llama, data, tmp_path / "run")
    assert set(first.exit_codes) == {ExitCode.OK}, first.logs
    for event in (event for event in first.events if event.event == "step" and event.rank == 0):
        values = event.values
        assert 0 <= values["data_wait"] < values["seconds"]
        assert values["tokens"] > 0
        assert values["memory_bytes"] > 10_000_000
    shown = scalars(tmp_path / "run" / "outputs" / "tensorboard")
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second", "memory_gib"):
        assert [step for step, _ in shown[f"train/{name}"]] == list(range(1, 13)), name
    assert dict(shown["train/loss"]) == pytest.approx(first.losses(), rel=1e-6)
    for (_, tokens), (_, mfu) in zip(shown["train/tokens_per_second"], shown["train/mfu"], strict=True):
        assert mfu == pytest.approx(tokens * PER_TOKEN / (PEAK * plan.world_size), rel=1e-5)
    assert [step for step, _ in shown["eval/loss"]] == [12]

    halfway = tmp_path / "run" / "node-{rank}" / checkpoint_name(8, 1)
    again = bench.run(plan, llama, data, tmp_path / "run", resume=halfway, generation=2)
    assert set(again.exit_codes) == {ExitCode.OK}, again.logs
    shown = scalars(tmp_path / "run" / "outputs" / "tensorboard")
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 13)), "a step twice, or none"


def test_outputs_of_a_gang_are_in_storage_when_it_is_done(undisturbed_gang: Agents, tmp_path: Path) -> None:
    prefix = f"{undisturbed_gang.prefix}{File.OUTPUTS}/tensorboard/"
    for entry in undisturbed_gang.store.list(prefix):
        undisturbed_gang.store.get_file(entry.key, tmp_path / entry.key.removeprefix(prefix))
    assert [step for step, _ in scalars(tmp_path)["train/loss"]] == list(range(1, STEPS + 1))
    progress = undisturbed_gang.done()
    assert progress.samples_per_second > 0
    assert progress.memory_bytes > 0
    assert 0 <= progress.data_wait < 1
    assert progress.mfu is None, "nobody knows the peak of a CPU"


class CountingStore(FolderStore):
    """Remembers what was put; refuses while it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.puts: list[str] = []
        self.refuses = False

    def put(self, key: str, data: bytes) -> None:
        if self.refuses:
            raise StorageError(storage_problem("AccessDenied", "no", "ask"))
        self.puts.append(key)
        super().put(key, data)


def test_only_what_has_changed_is_put_again_and_a_storage_that_refuses_is_asked_later(tmp_path: Path) -> None:
    store, folder = CountingStore(tmp_path / "store"), tmp_path / "outputs"
    (folder / "samples").mkdir(parents=True)
    (folder / "events").write_text("one")
    (folder / "samples" / "step-1.jsonl").write_text("{}")
    (folder / ".half-written").write_text("not yet")
    outputs = Outputs(store, "run/", folder)
    assert put_all(outputs) == ""
    assert store.puts == ["run/outputs/events", "run/outputs/samples/step-1.jsonl"]
    (folder / "events").write_text("one and two")
    store.refuses = True
    assert "AccessDenied" in put_all(outputs)
    store.refuses = False
    assert put_all(outputs) == ""
    assert store.puts[2:] == ["run/outputs/events"]
    assert store.get("run/outputs/events") == b"one and two"


def test_another_node_that_becomes_rank_0_gets_what_it_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put("run/outputs/events.1", b"of the node before")
    store.put("run/outputs/events.2", b"older than here")
    store.put("run/plan.json", b"{}")
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "events.2").write_bytes(b"older than here, and more")
    outputs = Outputs(store, "run/", folder)
    outputs.fetch()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "events.1": b"of the node before",
        "events.2": b"older than here, and more",
    }
    outputs.put()
    assert store.get("run/outputs/events.2") == b"older than here, and more"


def test_the_figures_of_a_step_are_what_a_clock_says() -> None:
    from finetune_trainer.worker.reports.meter import Meter

    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA)
    meter = Meter(plan)
    with meter.waiting():
        pass
    taken = meter.figures(tokens=100)
    assert taken.mfu is None
    assert taken.logs["tokens_per_second"] == pytest.approx(100 / taken.seconds)
    assert taken.logs["samples_per_second"] == pytest.approx(plan.layout.global_batch / taken.seconds)
    assert not math.isnan(taken.data_wait)


def test_a_tracker_that_the_job_names_hears_of_rank_0_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import TrainerCallback

    from finetune_trainer.worker.reports import trackers

    class Tracker(TrainerCallback):
        pass

    monkeypatch.setitem(trackers.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, report_to=("wandb",))
    first, second = orders(plan, tmp_path, tmp_path, tmp_path)
    heard = trackers.Trackers(first)
    assert [type(callback).__name__ for callback in heard.callbacks] == ["Charts", "Tracker"]
    heard.close()
    assert trackers.Trackers(second).callbacks == []
