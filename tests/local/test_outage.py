"""A gang whose storage is a real S3 server that stops answering in the middle of the run."""

import os
import signal
from pathlib import Path

from finetune_api.beats import Progress
from finetune_api.contract import ExitCode
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.committed import find_checkpoints
from tests.local.agents import EVERY, STEPS, Agents, assert_same_bits, wait_for
from tests.local.over_s3 import over_s3, server_pid


def test_an_outage_of_storage_costs_no_step_no_restart_and_no_bit(
    tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path, undisturbed_gang: Agents
) -> None:
    """It lasts from the first checkpoints until after the last step: training goes on, and waits at its end."""
    with over_s3(tmp_path, gang_plan, llama, gang_data) as agents, agents:
        agents.start()
        agents.wait_for_step(EVERY + 3)
        server = server_pid()
        os.kill(server, signal.SIGSTOP)
        try:

            def trained() -> Progress | None:
                assert all(process.poll() is None for process in agents.processes.values()), agents.logs()
                progress = agents.progress()
                return progress if progress is not None and progress.step == STEPS else None

            wait_for("the last step, without storage", trained)
            committed = find_checkpoints(agents.store, agents.prefix).committed
            assert max((one.step for one in committed), default=0) < STEPS
        finally:
            os.kill(server, signal.SIGCONT)
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        assert agents.done().recoveries == ()
        assert_same_bits(agents, undisturbed_gang, STEPS)
