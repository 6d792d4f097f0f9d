"""A stop waits for no evaluation: it saves at once, and the run that goes on makes up for it."""

from pathlib import Path

import pytest

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_trainer.checkpoints.marker import Marker
from tests.local.harness import make_plan, write_dataset
from tests.local.patched import Patched

STEPS = 4
BATCHES = 12  # of each rank in an evaluation


@pytest.mark.parametrize(
    ("moment", "every"),
    [
        pytest.param("stop in evaluation", 2, id="in an evaluation"),
        pytest.param("stop in evaluation", 0, id="in the last evaluation"),
        pytest.param("stop in step", 2, id="when an evaluation is due"),
    ],
)
def test_a_stop_saves_at_once_and_the_evaluation_is_made_when_the_run_goes_on(
    moment: str, every: int, patched_workers: Patched, llama: Path, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(
        Task.CAUSAL_LM,
        MethodType.LORA,
        max_steps=STEPS,
        checkpoint_every_steps=STEPS,
        eval_every_steps=every,
        training={"per_device_eval_batch_size": 1},
    )
    at = every or STEPS
    whole = patched_workers.run(plan, llama, data, tmp_path / "whole")
    assert whole.exit_codes == (ExitCode.OK, ExitCode.OK), whole.logs
    stopped = patched_workers.run(plan, llama, data, tmp_path / "stopped", moment)
    assert stopped.exit_codes == (ExitCode.DRAINED, ExitCode.DRAINED), stopped.logs
    made = [one["batches"] for one in stopped.facts]
    assert made[0] == made[1] < BATCHES, "all ranks give up before the same batch"
    assert stopped.saves() == [at]
    assert stopped.evaluations() == []
    resume = tmp_path / "stopped" / "node-{rank}" / checkpoint_name(at, 1)
    again = patched_workers.run(plan, llama, data, tmp_path / "again", resume=resume)
    assert again.exit_codes == (ExitCode.OK, ExitCode.OK), again.logs
    assert again.evaluations() == whole.evaluations()
    [marker] = (tmp_path / "again").glob(f"node-0/{checkpoint_name(at)}-g*/rank-0.saved")
    assert Marker.model_validate_json(marker.read_text()).metrics, "the best so far is saved with its scores"
    assert sorted(again.losses()) == list(range(at + 1, STEPS + 1))
    assert {**stopped.losses(), **again.losses()} == whole.losses()


def test_a_run_that_its_owed_evaluation_ends_makes_no_step_more(
    patched_workers: Patched, llama: Path, tmp_path: Path
) -> None:
    """Nothing is good enough for the threshold: of the undisturbed run the second evaluation is the last."""
    data = write_dataset(tmp_path / "data", Task.CAUSAL_LM)
    plan = make_plan(
        Task.CAUSAL_LM,
        MethodType.LORA,
        max_steps=STEPS + 2,
        checkpoint_every_steps=STEPS + 2,
        eval_every_steps=STEPS // 2,
        early_stopping_patience=1,
        early_stopping_threshold=100.0,
        training={"per_device_eval_batch_size": 1},
    )
    whole = patched_workers.run(plan, llama, data, tmp_path / "whole")
    assert whole.exit_codes == (ExitCode.OK, ExitCode.OK), whole.logs
    assert max(whole.losses()) == STEPS
    stopped = patched_workers.run(plan, llama, data, tmp_path / "stopped", "stop in second evaluation")
    assert stopped.exit_codes == (ExitCode.DRAINED, ExitCode.DRAINED), stopped.logs
    resume = tmp_path / "stopped" / "node-{rank}" / checkpoint_name(STEPS, 1)
    again = patched_workers.run(plan, llama, data, tmp_path / "again", resume=resume)
    assert again.exit_codes == (ExitCode.OK, ExitCode.OK), again.logs
    assert again.losses() == {}
    assert [*stopped.evaluations(), *again.evaluations()] == whole.evaluations()
    [marker] = (tmp_path / "again").glob(f"node-0/{checkpoint_name(STEPS)}-g*/rank-0.saved")
    assert Marker.model_validate_json(marker.read_text()).metrics, "the end of a run is saved with its scores"
    [resumed] = (tmp_path / "again").glob(f"node-0/{checkpoint_name(STEPS)}-g*")
    once_more = patched_workers.run(
        plan, llama, data, tmp_path / "once more", resume=tmp_path / "again" / "node-{rank}" / resumed.name
    )
    assert once_more.exit_codes == (ExitCode.OK, ExitCode.OK), once_more.logs
    assert once_more.saves() == []
