"""Nodes that stand by: real agents, of which one more than train. And how nodes leave that nobody waits for."""

import os
import signal
from pathlib import Path

import pytest

from finetune_api.beats import Progress
from finetune_api.contract import ExitCode
from finetune_api.plan import Plan
from tests.local.agents import STEPS, Agents, assert_same_bits, children, wait_for
from tests.support.plans import revised

SPARE = 2
READY = "ready: "


def start_with_spare(agents: Agents) -> None:
    """Nodes 0 and 1, then the spare, and waits until all take part."""
    agents.start(0, 1, SPARE)
    wait_for("every node's beats to be answered", lambda: all(map(agents.healthy, (0, 1, SPARE))) or None)


def stand_by(agents: Agents, step: int) -> tuple[int, Progress]:
    """Waits for a step, and until the node without workers could start some; the others are halted meanwhile.

    Whoever is ready first trains; the test needs two nodes behind the leader of which one does.
    """
    progress = agents.wait_for_step(step)
    training = [node for node in (0, 1, SPARE) if agents.trains(node, progress.generation)]
    workers = [agents.workers()[node] for node in training]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    [idle] = {0, 1, SPARE} - set(training)
    wait_for("the spare to be warm", lambda: READY in agents.log(idle) or None)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    return idle, progress


def test_a_lost_nodes_rank_goes_to_the_spare_and_costs_no_bit(
    tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path, undisturbed_gang: Agents
) -> None:
    """The lost node never comes back, as a pod that stays Pending."""
    with Agents.prepared(tmp_path, gang_plan, llama, gang_data) as agents:
        start_with_spare(agents)
        spare, before = stand_by(agents, 15)
        lost = 3 - (spare or SPARE)
        agents.lose(lost)
        wait_for("the spare to train", lambda: agents.trains(spare, before.generation + 1) or None)
        assert agents.wait() == dict.fromkeys({0, 1, SPARE} - {lost}, ExitCode.OK), agents.logs()
        [recovery] = agents.done().recoveries
        assert (recovery.category, recovery.node) == ("NodeFault", lost)
        assert (recovery.seconds or 99) < 10, "it was warm: no pod's start was waited for"
        assert_same_bits(agents, undisturbed_gang, STEPS)


@pytest.fixture
def endless(gang_plan: Plan) -> Plan:
    return revised(gang_plan, max_steps=100_000, checkpoint_every_steps=50)


def test_a_node_told_to_stop_saves_and_the_spare_goes_on_from_there(
    tmp_path: Path, endless: Plan, llama: Path, gang_data: Path
) -> None:
    with Agents.prepared(tmp_path, endless, llama, gang_data) as agents:
        start_with_spare(agents)
        spare, before = stand_by(agents, 13)
        told = 3 - (spare or SPARE)
        agents.send(signal.SIGTERM, told)
        assert agents.processes.pop(told).wait(60) == ExitCode.DRAINED, agents.logs()
        after = agents.wait_for_step(before.step + 5, before.generation)
        [recovery] = after.recoveries
        assert (recovery.category, recovery.lost_steps, recovery.node) == ("Preempted", 0, told)
        assert (recovery.resumed_step or 0) >= before.step

        agents.start(told)  # the replaced pod stands by, and leaves without a trace
        wait_for("the replaced node", lambda: (agents.log(told).count(READY) == 2) or None)
        assert agents.healthy(told)
        agents.send(signal.SIGTERM, told)
        assert agents.processes.pop(told).wait(20) == ExitCode.DRAINED, agents.logs()
        assert agents.wait_for_step(after.step + 50).recoveries == after.recoveries

        stay = {0, 1, SPARE} - {told}
        agents.send(signal.SIGTERM, *stay)
        assert agents.wait() == dict.fromkeys(stay, ExitCode.DRAINED), agents.logs()
        left = agents.result(0).progress
        assert left is not None
        assert left.recovery_totals.count == 2
        assert agents.stored().recoveries[-1].category == "Preempted"
        assert agents.result(max(stay)).progress is None


def test_a_node_told_to_stop_while_it_starts_leaves_at_once(
    tmp_path: Path, endless: Plan, llama: Path, gang_data: Path
) -> None:
    with Agents.prepared(tmp_path, endless, llama, gang_data) as agents:
        agents.start(1)
        wait_for("its zygote", lambda: children(agents.processes[1].pid) or None)
        agents.send(signal.SIGTERM, 1)
        assert agents.processes[1].wait(10) == ExitCode.DRAINED, agents.logs()
        assert agents.result(1).category == "Preempted"
        assert not agents.healthy(1)


def test_libraries_that_cannot_be_imported_are_named(
    tmp_path: Path, endless: Plan, llama: Path, gang_data: Path
) -> None:
    """As in an image of one's own; a pod that waits for ever would cost as much as one that works."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "peft.py").write_text("raise ImportError('peft is not what it was')")
    environ = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), os.environ.get("PYTHONPATH", "")])}
    with Agents.prepared(tmp_path, endless, llama, gang_data, environ) as agents:
        agents.start(0)
        assert agents.wait() == {0: ExitCode.UNKNOWN}, agents.logs()
        [problem] = agents.result(0).problems
        assert "peft is not what it was" in problem.message


def test_a_stop_while_workers_load_is_announced_and_no_failure(
    tmp_path: Path, endless: Plan, llama: Path, gang_data: Path
) -> None:
    with Agents.prepared(tmp_path, endless, llama, gang_data) as agents:
        agents.start()
        wait_for("workers to be started", lambda: all(agents.trains(node, 1) for node in (0, 1)) or None)
        agents.send(signal.SIGTERM, 0, 1)
        assert agents.wait() == {0: ExitCode.DRAINED, 1: ExitCode.DRAINED}, agents.logs()
        [recovery] = agents.stored().recoveries
        assert (recovery.category, recovery.resumed_step) == ("Preempted", None)
        assert agents.stored().recovery_totals.restarts == 0


def test_only_the_leader_ends_with_the_verdict(tmp_path: Path, endless: Plan, llama: Path, gang_data: Path) -> None:
    """A follower goes first; with a terminal code the Job would fail before the leader has said why."""
    job = {"recovery": {"maxRestarts": 0}}
    with Agents.prepared(tmp_path, endless, llama, gang_data, job=job) as agents:
        agents.start()
        agents.wait_for_step(3)
        os.kill(agents.workers()[1], signal.SIGKILL)
        assert agents.wait() == {0: ExitCode.GANG_FAILED, 1: ExitCode.DRAINED}, agents.logs()
        result = agents.result(0)
        assert result.category == "Unknown"
        assert "rank 1 on node 1 was killed by signal 9" in result.problems[0].message
        assert result.progress is not None
        assert result.progress.failure is not None
        assert result.progress.failure.node == 1
