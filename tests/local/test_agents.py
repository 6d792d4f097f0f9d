"""Gangs of real agents and DeepSpeed workers: whatever is killed, the run ends with the bits of an undisturbed one."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

from finetune_api.contract import ExitCode, File, checkpoint_name
from finetune_api.messages import CheckpointInfo, Manifest, MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.process.lean_imports import TAKEN_ALONG
from tests.local.agents import EVERY, STEPS, Agents, assert_same_bits, wait_for
from tests.local.harness import make_plan
from tests.support.plans import revised


def manifests(agents: Agents) -> dict[str, Manifest]:
    return {
        entry.key.removesuffix(File.MANIFEST): Manifest.model_validate_json(agents.store.get(entry.key))
        for entry in agents.store.list(f"{agents.prefix}checkpoints/")
        if entry.key.endswith(File.MANIFEST)
    }


def test_a_manifest_names_every_file_with_its_sha256(undisturbed_gang: Agents) -> None:
    found = manifests(undisturbed_gang)
    assert [prefix.rsplit("/", 2)[1] for prefix in found] == [
        checkpoint_name(STEPS - EVERY, 1),
        checkpoint_name(STEPS, 1),
    ]
    for prefix, manifest in found.items():
        listed = {entry.path for entry in manifest.files}
        stored = {entry.key.removeprefix(prefix) for entry in undisturbed_gang.store.list(prefix)}
        assert stored - listed == {File.MANIFEST, f"node-0/{File.PART}", f"node-1/{File.PART}"}
        assert any(path.startswith("node-1/") for path in listed)
        for entry in manifest.files:
            content = undisturbed_gang.store.get(prefix + entry.path)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.size, entry.sha256), entry.path
        info = CheckpointInfo.model_validate(manifest.info)
        assert info.samples == info.step * 8


def test_the_end_of_a_run_is_told(undisturbed_gang: Agents) -> None:
    done = undisturbed_gang.done()
    assert (done.step, done.max_steps, done.phase) == (STEPS, STEPS, "train")
    assert done.recoveries == ()
    assert done.tokens > STEPS * 8
    assert done.evals[-1].values["eval_loss"] > 0
    logs = [entry.key for entry in undisturbed_gang.store.list(f"{undisturbed_gang.prefix}logs/")]
    assert [key.removeprefix(undisturbed_gang.prefix) for key in logs] == [
        "logs/generation-1/rank-0.log",
        "logs/generation-1/rank-1.log",
    ]


def test_a_worker_imports_no_library_after_its_fork(undisturbed_gang: Agents) -> None:
    """Each restart would pay for the import again: a module that this names is missing in the zygote's LAZY_IMPORTS."""
    logs = [entry.key for entry in undisturbed_gang.store.list(f"{undisturbed_gang.prefix}logs/")]
    lines = "\n".join(undisturbed_gang.store.get(key).decode() for key in logs).splitlines()
    imported = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    libraries = ("torch.", "transformers.", "deepspeed.", "peft.", "accelerate.", "finetune_")
    late = {name for name in imported if name.startswith(libraries)}
    ask_for_a_gpu = {"deepspeed.module_inject.auto_ep_layer", "deepspeed.comm.mori"}  # which a zygote must not
    not_installed = {"torch.utils.tensorboard"}
    assert not_installed <= late, "the imports are in the log"
    assert {name for name in late if not name.startswith("deepspeed.ops.triton_ops")} == ask_for_a_gpu | not_installed


def test_a_start_imports_nothing_that_libraries_only_take_along(undisturbed_gang: Agents) -> None:
    log = (undisturbed_gang.work / "node-0" / "logs" / "zygote.log").read_text()
    imported = {line.rsplit("|", 1)[1].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert {"torch", "peft", "transformers"} <= imported
    assert not {name for name in imported if name.startswith(tuple(f"{one}." for one in TAKEN_ALONG))}


def test_a_killed_worker_costs_no_bit(
    tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path, undisturbed_gang: Agents
) -> None:
    with Agents.prepared(tmp_path, gang_plan, llama, gang_data) as agents:
        half = f"{agents.prefix}checkpoints/{checkpoint_name(5, 1)}/node-0/weights"
        agents.store.put(half, b"of an upload that no commit followed")
        agents.start()
        for node, step in ((1, 15), (0, 35)):
            before = agents.wait_for_step(step)
            os.kill(agents.workers()[node], signal.SIGKILL)
            agents.wait_for_step(step, before.generation)
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        done = agents.done()
        assert [recovery.reason.split(" in phase")[0] for recovery in done.recoveries] == [
            "rank 1 on node 1 was killed by signal 9",
            "rank 0 on node 0 was killed by signal 9",
        ]
        assert all((recovery.resumed_step or 0) >= EVERY for recovery in done.recoveries)
        assert all(recovery.lost_steps <= 2 * EVERY for recovery in done.recoveries)
        assert all(0 < (recovery.seconds or 0) < 60 for recovery in done.recoveries)
        assert (done.recovery_totals.count, done.recovery_totals.restarts) == (2, 2)
        assert agents.store.head(half) is None
        left = agents.result(0).progress
        assert left is not None
        assert (left.phase, left.step) == ("done", STEPS)
        assert (left.recoveries, left.recovery_totals) == (done.recoveries, done.recovery_totals)
        assert_same_bits(agents, undisturbed_gang, STEPS)


def test_nodes_lost_with_their_disks_are_replaced_from_storage(
    tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path, undisturbed_gang: Agents
) -> None:
    """SIGKILL of everything at once, with all local checkpoints gone: only storage is left."""
    with Agents.prepared(tmp_path, gang_plan, llama, gang_data) as agents:
        agents.start()
        wait_for("a committed checkpoint", lambda: (agents.progress() or agents.wait_for_step(1)).checkpoints or None)
        agents.lose(0, 1)
        agents.start()
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        assert "start from checkpoint" in agents.logs()
        [recovery] = agents.done().recoveries
        assert (recovery.reason, recovery.category, recovery.node) == ("the leader's pod was lost", "NodeFault", 0)
        assert (recovery.resumed_step or 0) >= EVERY
        assert recovery.seconds is not None
        assert_same_bits(agents, undisturbed_gang, STEPS)


def test_a_gang_told_to_stop_saves_first_and_loses_no_step(
    tmp_path: Path, gang_plan: Plan, llama: Path, gang_data: Path, undisturbed_gang: Agents
) -> None:
    seldom = revised(gang_plan, checkpoint_every_steps=STEPS)  # a step at which the stop falls is no interval's
    with Agents.prepared(tmp_path, seldom, llama, gang_data) as agents:
        agents.start()
        told = agents.wait_for_step(13).step
        agents.send(signal.SIGTERM, 0, 1)
        assert agents.wait() == {0: ExitCode.DRAINED, 1: ExitCode.DRAINED}, agents.logs()
        newest = max(CheckpointInfo.model_validate(manifest.info).step for manifest in manifests(agents).values())
        assert newest >= told
        assert newest < STEPS, "saved where it was told, not at the next interval"
        left = agents.result(0).progress
        assert left is not None
        assert left.checkpoints[-1].step == newest
        assert agents.result(1).progress is None, "only the leader knows"
        before = agents.stored()
        for node in range(2):
            shutil.rmtree(tmp_path / f"node-{node}")
        agents.start()  # the next attempt: other pods, the same run
        assert agents.wait() == {0: ExitCode.OK, 1: ExitCode.OK}, agents.logs()
        assert f"start from checkpoint {newest}" in agents.logs()
        done = agents.done()
        assert done.generation > before.generation
        [recovery] = done.recoveries
        assert (recovery.category, recovery.resumed_step, recovery.lost_steps) == ("Preempted", newest, 0)
        assert done.recovery_totals.restarts == 0, "an announced stop is free"
        assert done.checkpoint_count > before.checkpoint_count
        assert done.tokens == undisturbed_gang.done().tokens, "every step counted once, also those before"
        assert done.train_seconds > before.trained.seconds > 0
        assert_same_bits(agents, undisturbed_gang, STEPS)


SPY = """
import json, os
AGENT = os.getppid()

def look():
    seen = {}
    for name in ("environ", "mem", "fd"):
        try:
            path = f"/proc/{AGENT}/{name}"
            os.readlink(path + "/1") if name == "fd" else open(path, "rb").read(1)
            seen[name] = "readable"
        except OSError as error:
            seen[name] = type(error).__name__
    seen["environment"] = sorted(os.environ)
    with open(os.environ["PYTHON_SPY_FILE"], "w") as file:
        json.dump(seen, file)

if "finetune_trainer.agent.zygote" in open("/proc/self/cmdline").read():
    os.register_at_fork(after_in_child=look)
"""


def test_code_in_a_worker_sees_no_key_of_the_agent(tmp_path: Path, llama: Path, gang_data: Path) -> None:
    """The spy runs in the worker itself, as model code would; the agent does hold the keys."""
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    environ = {
        "PYTHONPATH": os.pathsep.join([str(spy), os.environ.get("PYTHONPATH", "")]),
        "PYTHON_SPY_FILE": str(spy / "seen.json"),
        "AWS_ACCESS_KEY_ID": "the-key",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "HF_TOKEN": "the-hub-token",
    }
    plan = make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1)
    with Agents.prepared(tmp_path, plan, llama, gang_data, environ) as agents:
        agents.start()
        assert agents.wait() == {0: ExitCode.OK}, agents.logs()
    seen = json.loads((spy / "seen.json").read_text())
    assert {name: seen[name] for name in ("environ", "mem", "fd")} == dict.fromkeys(
        ("environ", "mem", "fd"), "PermissionError"
    )
    assert "PATH" in seen["environment"]
    leaked = [name for name in seen["environment"] if name.startswith(("AWS_", "FINETUNE_", "HF_TOKEN"))]
    assert leaked == []
