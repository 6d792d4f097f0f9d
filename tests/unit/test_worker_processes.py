"""The workers of a node, where something does not end as it should: every wait has an end and a sentence."""

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_api.beats import Action, Directive, RankReport, RankState
from finetune_api.contract import Env
from finetune_api.errors import RunError
from finetune_api.messages import MethodType, Task
from finetune_trainer.agent import workers as module
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.gang_failures import describe
from finetune_trainer.agent.places import Places
from finetune_trainer.agent.security import withheld, worker_environment
from finetune_trainer.agent.workers import Worker, Workers
from finetune_trainer.process.orders import WorkerOrder
from tests.local.harness import make_plan
from tests.support.plans import revised

DEADLINE = 60.0


def made(folder: Path) -> Workers:
    return Workers(os.environ, folder / "logs", lambda event: None, lambda: None)


def test_a_zygote_that_dies_again_and_again_is_given_up_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an end the agent would go on beating, and its gang would wait for it for ever."""
    dying = tmp_path / "dying"
    dying.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('CUDA driver was unloaded')\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))

    async def play() -> None:
        workers = made(tmp_path)
        await workers.warm_up()
        with pytest.raises(RunError, match="CUDA driver was unloaded"):
            await asyncio.wait_for(workers.warm_again(), DEADLINE)
        await workers.close()

    asyncio.run(play())
    assert (tmp_path / "logs" / "zygote.log").read_text().count("unloaded") == 1 + module.ZYGOTES


def order() -> WorkerOrder:
    return WorkerOrder(
        plan=make_plan(Task.CAUSAL_LM, MethodType.LORA), generation=1, rank=3, local_rank=0, node_rank=3, world_size=4,
        local_world_size=1, master_host="h", master_port=1, threads=1, model="m", dataset="d", checkpoints="c",
        outputs="o",
    )  # fmt: skip


def test_a_worker_that_cannot_be_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is blocked in the kernel for a disk or a GPU, and no signal reaches it."""
    monkeypatch.setattr(module, "KILL_SECONDS", 0.05)
    monkeypatch.setattr(module, "KILL_AGAIN_SECONDS", 0.01)
    killed: list[int] = []
    monkeypatch.setattr(module, "_kill_group", killed.append)

    async def play() -> None:
        workers = made(tmp_path)
        workers._current = [Worker(order(), tmp_path / "log", RankReport(rank=3, state=RankState.RUNNING), pid=7)]
        with pytest.raises(RunError, match=r"rank 3, process 7, has not exited .* is blocked in the kernel"):
            await asyncio.wait_for(workers.kill(), DEADLINE)

    asyncio.run(play())
    assert len(killed) > 1, "it was tried again"


def test_the_last_lines_of_a_log_are_told_and_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    log.write_bytes(b"x" * 1_000_000 + b"the end\n")
    assert module._tail(log).endswith("xthe end\n")
    assert len(module._tail(log)) == module.LOG_TAIL_BYTES
    (tmp_path / "link.log").symlink_to(log)
    os.mkfifo(tmp_path / "pipe.log")
    for other in ("link.log", "pipe.log", "missing.log"):
        assert module._tail(tmp_path / other) == ""


CLUSTER = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "FI_PROVIDER": "efa",
    "UCX_TLS": "rc",
    "TORCHINDUCTOR_CACHE_DIR": "/cache",
    "OMP_PROC_BIND": "close",
    "NCCL_IB_HCA": "mlx5",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
OTHERS = {"MY_SETTING": "1", "DB_PASSWORD": "secret"}
EXPECTED = {
    "AWS_SECRET_ACCESS_KEY": "x",
    "FINETUNE_TOKEN": "x",
    "HF_TOKEN": "x",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "BOT_SERVICE_HOST": "10.0.0.2",
    "BOT_PORT_80_TCP": "tcp://10.0.0.2:80",
    "HOSTNAME": "pod",
}


def test_what_gpu_clusters_set_reaches_the_workers_and_what_does_not_is_named() -> None:
    environ = {**CLUSTER, **OTHERS, **EXPECTED}
    assert worker_environment(environ).items() >= CLUSTER.items()
    assert not worker_environment(environ).keys() & {*OTHERS, *EXPECTED}
    assert withheld(environ) == sorted(OTHERS), "names only, and not what nobody set for the workers"


@pytest.mark.parametrize(
    ("given", "cores", "ranks", "threads"), [(0, 16, 8, 2), (0, 8, 1, 8), (0, 4, 8, 1), (3, 16, 8, 3)]
)
def test_the_workers_of_a_node_share_its_cores(
    given: int, cores: int, ranks: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight ranks with all cores each would keep each other waiting. A number that is given is each worker's."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    environ = {
        **dict.fromkeys((Env.JOB, Env.JOB_UID, Env.TOKEN, Env.WORK_DIR), "x"),
        Env.NODE_INDEX: "0",
        Env.THREADS: str(given),
    }
    config = AgentConfig.from_env(environ)
    assert config.worker_threads(ranks) == threads
    plan = revised(make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1), processes_per_node=ranks)
    directive = Directive(generation=1, action=Action.RUN, master_host="h", master_port=1)
    orders = Places(Path("work"), ranks).orders(plan, directive, 0, config.worker_threads(ranks), None)
    assert [order.threads for order in orders] == [threads] * ranks


def test_the_process_that_workers_are_forked_from_has_one_thread_whatever_a_pod_says() -> None:
    """A parallel region before the fork would hang every child's first one."""
    assert worker_environment({"OMP_NUM_THREADS": "16", "OMP_PROC_BIND": "true"})["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("free", "said", "expect"),
    [
        (
            4096,
            "RuntimeError: PytorchStreamWriter failed writing file",
            "No space left on device below {logs}; Runtime",
        ),
        (4096, "", "No space left on device below {logs}"),
        (1 << 30, "KeyError: 3", "KeyError: 3"),
    ],
    ids=["torch's words", "no word", "another reason"],
)
def test_a_worker_that_fails_on_a_full_disk_is_said_to(
    free: int, said: str, expect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says that a write failed, not why."""
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    report = RankReport(rank=0, state=RankState.RUNNING, error=said)
    order = Places(tmp_path, 1).orders(
        make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1), Directive(generation=1, action=Action.RUN), 0, 1, None
    )[0]
    worker = Worker(order, tmp_path / "logs" / "rank-0.log", report)
    module._end(worker, 1)
    assert worker.report.error.startswith(expect.format(logs=tmp_path / "logs"))
    described = describe(1, worker.report)
    assert ("the node's disk is full: increase spec.scratch.size" in described) == (free == 4096)
    again = Worker(order, worker.log, report)
    module._end(again, 0)
    assert again.report.error == said, "who ended well says nothing else"
