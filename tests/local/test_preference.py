"""Preference tuning by real workers: equal losses in every layout, a reference that is kept, rewards, equal bits."""

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_trainer.checkpoints.committed import find_checkpoints
from tests.local.agents import Agents
from tests.local.harness import Bench, Run, make_plan
from tests.support.events import scalars
from tests.support.preferences import Pair, pairs, plan_of, write_pairs, write_singles

EXACT = 1e-5
BETTER, WORSE = 7, 8  # first token of the chosen and of the rejected completions
ADAPTER = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}


def planted(count: int, seed: int) -> list[Pair]:
    """Pairs of random tokens whose chosen completion begins with one token, and whose rejected one with another."""
    return [Pair(one.prompt, [BETTER, *one.chosen], [WORSE, *one.rejected]) for one in pairs(count, 500, seed)]


@pytest.fixture(scope="module")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "train.arrow", planted(40, 1))
    write_pairs(folder / "eval.arrow", planted(14, 2))
    return folder


@pytest.fixture(scope="module")
def single_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("singles")
    write_singles(folder / "train.arrow", planted(20, 1))
    write_singles(folder / "eval.arrow", planted(7, 2))
    return folder


@dataclass(frozen=True)
class Case:
    """A loss, how it is trained, and the layouts that must agree: world, ZeRO stage, accumulation.

    `recomputed`: the ZeRO stage at which activations are computed again.
    """

    loss: PreferenceLoss
    method: MethodType
    layouts: tuple[tuple[int, int, int], ...]
    head: str = "labelled"
    recomputed: int = -1

    def __str__(self) -> str:
        return f"{self.loss}-{self.method}"

    def plan(self, world: int, stage: int, accumulation: int, **changes: Any) -> Plan:
        reference = "cached" if self.method is MethodType.FULL else "adapter-off"
        preference = plan_of(self.loss, reference)
        values = {"max_steps": 6, "checkpoint_every_steps": 6, "lora": ADAPTER, "preference": preference, **changes}
        if self.method is MethodType.FULL:
            values.pop("lora")
        if stage == self.recomputed:
            values["training"] = {"activation_checkpointing": True}
        return make_plan(
            Task.PREFERENCE,
            self.method,
            world=world,
            stage=stage,
            accumulation=accumulation,
            loss_head=self.head,
            **values,
        )


ALL = ((1, 0, 1), (1, 1, 4), (2, 2, 4), (2, 3, 1))
CASES = (
    Case(PreferenceLoss.SIGMOID, MethodType.LORA, ((1, 1, 4), (2, 2, 1), (2, 3, 2)), recomputed=3),
    Case(PreferenceLoss.KTO, MethodType.FULL, ((1, 1, 1), (2, 3, 2)), head="chunked"),
    Case(PreferenceLoss.ORPO, MethodType.FULL, ((1, 1, 1), (2, 2, 4))),
    pytest.param(Case(PreferenceLoss.SIGMOID, MethodType.QLORA, ((1, 0, 1), (2, 2, 4))), marks=pytest.mark.matrix),
    *(
        pytest.param(Case(loss, method, ALL), marks=pytest.mark.matrix)
        for loss in PreferenceLoss
        for method in (MethodType.LORA, MethodType.FULL)
    ),
)


def steps_of(run: Run) -> list[dict[str, float]]:
    """What rank 0 has reported of each step."""
    return [event.values for event in run.events if event.event == "step" and event.rank == 0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_gives_the_same_losses_and_rewards(
    case: Case, bench: Bench, llama: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    facts = PREFERENCE_LOSSES[case.loss]
    data: Path = request.getfixturevalue("pair_data" if facts.paired else "single_data")
    runs: list[Run] = []
    for layout in case.layouts:
        run = bench.run(case.plan(*layout), llama, data, tmp_path / "-".join(map(str, layout)))
        assert set(run.exit_codes) == {ExitCode.OK}, f"{layout}: {run.logs}"
        runs.append(run)
    first, *others = (
        [event.values for event in run.events if event.event == "step" and event.rank == 0] for run in runs
    )
    named = set(facts.metrics)
    assert len(first) == 6
    assert named <= first[0].keys()
    if facts.reference:
        assert first[0]["rewards/chosen"] == pytest.approx(0, abs=1e-4), "the model starts as its own reference"
    assert abs(first[-1]["rewards/chosen"]) > 1e-3
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            for name in named | {"grad_norm"}:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=EXACT), name
    expected = runs[0].evaluations()[-1]
    assert expected.keys() >= {f"eval_{name}" for name in named}
    for run in runs[1:]:
        for name in named:
            assert run.evaluations()[-1][f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], abs=1e-4), name


def test_a_planted_preference_is_learned_and_shown(bench: Bench, llama: Path, pair_data: Path, tmp_path: Path) -> None:
    case = Case(PreferenceLoss.SIGMOID, MethodType.LORA, ())
    plan = case.plan(1, 2, 1, max_steps=45, checkpoint_every_steps=45, eval_every_steps=15, learning_rate=2e-2)
    run = bench.run(plan, llama, pair_data, tmp_path)
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    margins = [metrics["eval_rewards/margins"] for metrics in run.evaluations()]
    assert 0 < margins[0] < margins[-1], margins
    assert run.evaluations()[-1]["eval_rewards/accuracies"] > 0.95
    shown = scalars(tmp_path / "outputs" / "tensorboard")
    assert {"train/rewards/margins", "train/rewards/accuracies", "eval/rewards/accuracies"} <= shown.keys()


# ---------------------------------------------------------------- the reference that is computed once

CACHED = Case(PreferenceLoss.SIGMOID, MethodType.FULL, ())


def computed(run: Run) -> bool:
    """Whether the log-probabilities of the reference were computed in a run."""
    return any(event.phase == "reference" for event in run.events)


def model_at(work: Path, step: int, generation: int) -> dict[str, torch.Tensor]:
    return load_file(work / "node-0" / checkpoint_name(step, generation) / "model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert torch.equal(weights, other[name]), name


def test_a_resumed_run_reads_the_reference_from_its_checkpoint_and_ends_with_the_same_bits(
    bench: Bench, llama: Path, pair_data: Path, tmp_path: Path
) -> None:
    plan = CACHED.plan(2, 2, 1, max_steps=8, checkpoint_every_steps=4)
    whole = bench.run(plan, llama, pair_data, tmp_path / "whole")
    assert set(whole.exit_codes) == {ExitCode.OK}, whole.logs
    assert computed(whole)
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(4, 1)
    (tmp_path / "whole" / "node-1" / checkpoint_name(4, 1) / "reference.npz").unlink()  # rank 0 gives it to rank 1
    resumed = bench.run(plan, llama, pair_data, tmp_path / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    assert not computed(resumed)
    assert_equal(model_at(tmp_path / "whole", 8, 1), model_at(tmp_path / "resumed", 8, 2))


def test_a_resumed_run_without_the_stored_values_computes_them_with_the_starting_weights(
    bench: Bench, llama: Path, pair_data: Path, tmp_path: Path
) -> None:
    plan = CACHED.plan(1, 2, 1, max_steps=8, checkpoint_every_steps=4)
    whole = bench.run(plan, llama, pair_data, tmp_path / "whole")
    halfway = tmp_path / "whole" / "node-{rank}" / checkpoint_name(4, 1)
    (tmp_path / "whole" / "node-0" / checkpoint_name(4, 1) / "reference.npz").write_bytes(b"PK\x03\x04 cut short")
    resumed = bench.run(plan, llama, pair_data, tmp_path / "resumed", resume=halfway, generation=2)
    assert set(resumed.exit_codes) == {ExitCode.OK}, resumed.logs
    assert computed(resumed)
    for step, loss in resumed.losses().items():
        assert loss == pytest.approx(whole.losses()[step], abs=EXACT), step
    assert whole.losses()[8] < 0.95 * whole.losses()[1], "the trained weights as reference would give log 2 again"


def test_a_killed_worker_costs_no_bit_and_no_reference(llama: Path, pair_data: Path, tmp_path: Path) -> None:
    plan = CACHED.plan(2, 2, 1, max_steps=40, checkpoint_every_steps=10)
    finals = []
    for disturbed in (False, True):
        work = tmp_path / str(disturbed)
        work.mkdir()
        with Agents.prepared(work, plan, llama, pair_data) as agents:
            agents.start()
            if disturbed:
                before = agents.wait_for_step(3)
                os.kill(agents.workers()[1], signal.SIGKILL)
                agents.wait_for_step(3, before.generation)
            assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
            assert len(agents.done().recoveries) == int(disturbed)
            committed = find_checkpoints(agents.store, agents.prefix).committed
            newest = max(one for one in committed if one.step == 40)
            finals.append(load(agents.store.get(f"{committed[newest].prefix}node-0/model.safetensors")))
            stored = agents.store.get(f"{committed[newest].prefix}node-1/reference.npz")
    assert stored
    assert_equal(*finals)


def test_the_adapter_that_a_run_starts_from_is_the_reference(
    bench: Bench, llama: Path, pair_data: Path, tmp_path: Path
) -> None:
    first = Case(PreferenceLoss.SIGMOID, MethodType.LORA, ())
    before = bench.run(first.plan(1, 2, 1), llama, pair_data, tmp_path / "before")
    adapter = tmp_path / "before" / "node-0" / checkpoint_name(6, 1)
    plan = first.plan(2, 3, 1, preference=plan_of(PreferenceLoss.SIGMOID, "cached"))
    run = bench.run(plan, llama, pair_data, tmp_path / "after", adapter=adapter)
    assert set(run.exit_codes) == {ExitCode.OK}, run.logs
    assert before.losses()[6] < 0.68
    assert run.losses()[1] == pytest.approx(math.log(2), abs=1e-4)
