"""`python -m finetune_trainer.agent`: one node of a training job, configured by environment (contract.Env)."""

import asyncio
import ipaddress
import logging
import os
import signal
import sys

from finetune_api.beats import Failure
from finetune_api.contract import ExitCode, File, run_prefix
from finetune_api.errors import FailureCategory, FineTuneError, Problem, exit_code
from finetune_api.messages import Plan, Stage
from finetune_api.results import StageResult
from finetune_api.yaml12 import load_job
from finetune_trainer.agent.agent import Agent
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.roster import Limits
from finetune_trainer.agent.security import hide_from_children
from finetune_trainer.agent.server import LeaderServer
from finetune_trainer.agent.workers import Workers
from finetune_trainer.processes import die_with_parent
from finetune_trainer.storage import open_store
from finetune_trainer.termination import fit

log = logging.getLogger("agent")

CURES = {
    FailureCategory.USER_ERROR: "correct the job as the message says",
    FailureCategory.DATA_ERROR: "mend the data set",
    FailureCategory.OUT_OF_MEMORY: "lower training.per_device_train_batch_size or dataset.maxLength, or use more nodes",
    FailureCategory.PREEMPTED: "nothing: run it again and it goes on from the last checkpoint",
    FailureCategory.NODE_FAULT: "look at the node; run it again and it goes on from the last checkpoint",
    FailureCategory.HANG: "look at the logs of the rank named; run it again and it goes on from the last checkpoint",
    FailureCategory.DIVERGED: "lower training.learning_rate, add warmup_steps, or look at the rows of that batch",
    FailureCategory.UNKNOWN: "read the log of the rank named, below the run's logs/ in storage",
}


def main() -> int:
    """Runs the agent; returns its exit code."""
    hide_from_children()  # before any child, and before anything is read that a child must not see
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.INFO, stream=sys.stderr)
    config = AgentConfig.from_env(os.environ)
    if config.parent:
        die_with_parent(config.parent)
    try:
        result, code = asyncio.run(run(config))
    except FineTuneError as error:
        log.error("%s", error)
        code = exit_code(error)
        result = StageResult(
            stage=Stage.TRAIN, succeeded=False, category=error.category, problems=tuple(error.problems)
        )
    if config.termination_log:
        config.termination_log.write_text(fit(result), "utf-8")
    return int(code)


async def run(config: AgentConfig) -> tuple[StageResult, ExitCode]:
    """One node, from its first import to its release."""
    job = load_job(config.job)
    store = open_store(job.spec.storage.uri, os.environ)
    run = run_prefix(job.metadata.namespace, job.metadata.name, config.uid)
    agent: Agent | None = None
    workers = Workers(
        os.environ,
        config.work / "logs",
        on_event=lambda event: agent.on_worker_event(event) if agent else None,
        on_change=lambda: agent.on_worker_change() if agent else None,
    )
    await workers.warm_up()  # first: its imports are the longest part of a start
    server = LeaderServer(config.token) if config.node == 0 else None
    leading: asyncio.Task[None] | None = None
    try:
        plan = Plan.model_validate_json(await asyncio.to_thread(store.get, run + File.PLAN))
        address = endpoint(config.host, await server.listen(interface(config.host), config.port)) if server else None
        agent = Agent(config, plan, store, run, workers, address)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.drain)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)  # the terminal's; ours is SIGTERM
        if server and address:
            restarts = job.spec.recovery.max_restarts if job.spec.recovery else None
            limits = Limits() if restarts is None else Limits(max_restarts=restarts)
            leader = Leader(plan, store, run, address, agent.incarnation, limits)
            server.lead(leader)
            leading = asyncio.create_task(leader.run())
        running = asyncio.create_task(agent.run())
        await asyncio.wait([running, *([leading] if leading else [])], return_when=asyncio.FIRST_COMPLETED)
        if leading and leading.done():
            leading.result()
        code = await running
        if leading and code is not ExitCode.DRAINED:
            await leading  # the leader leaves last
        return result(code, leader.scribe.failure if server and address else None), code
    finally:
        if leading:
            leading.cancel()
        if server:
            await server.close()
        await workers.close()


def interface(host: str) -> str:
    """The interface to listen on, given the address that others use: one family, because port 0 differs by family."""
    if ipaddress.ip_address(host).is_loopback:
        return host
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104 - pods reach it, and every request shows the token


def endpoint(host: str, port: int) -> str:
    """`host:port` as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def result(code: ExitCode, failure: Failure | None) -> StageResult:
    """What this node leaves behind: only the leader knows why a gang failed."""
    if code is ExitCode.OK:
        return StageResult(stage=Stage.TRAIN, succeeded=True)
    if code is ExitCode.DRAINED:
        return StageResult(stage=Stage.TRAIN, succeeded=False, category=FailureCategory.PREEMPTED, note="told to stop")
    if failure is None:
        return StageResult(stage=Stage.TRAIN, succeeded=False, note="the leader's result tells why")
    problem = Problem(
        code=failure.category.value, field="status.failure", message=failure.message, cure=CURES[failure.category]
    )
    return StageResult(
        stage=Stage.TRAIN, succeeded=False, category=failure.category, problems=(problem,), note=failure.log_tail
    )


if __name__ == "__main__":
    sys.exit(main())
