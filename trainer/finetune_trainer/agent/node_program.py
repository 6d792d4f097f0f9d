"""The program of one node of a training job, configured by environment variables (`contract.Env`): it runs the agent,
on node 0 also the leader, and leaves a StageResult."""

import asyncio
import ipaddress
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from finetune_api.beats import Progress
from finetune_api.contract import Env, ExitCode, File, run_prefix
from finetune_api.errors import HANDLING, FailureCategory, FineTuneError, Problem, exit_code
from finetune_api.messages import Stage
from finetune_api.plan import Plan
from finetune_api.results import StageResult
from finetune_trainer.agent.agent import Agent
from finetune_trainer.agent.config import AgentConfig
from finetune_trainer.agent.energy_meter import EnergyMeter
from finetune_trainer.agent.leader import Leader
from finetune_trainer.agent.ledger import NOT_THE_LEADER
from finetune_trainer.agent.patience import patiently
from finetune_trainer.agent.roster import Limits
from finetune_trainer.agent.server import AgentServer
from finetune_trainer.agent.workers import Workers
from finetune_trainer.process.stages import load_given_job
from finetune_trainer.process.termination import fit
from finetune_trainer.process.ties import die_with_parent, hide_from_children, reap_orphans
from finetune_trainer.storage import CONTROL, open_store

log = logging.getLogger("agent")

REAP_SECONDS = 1.0


def main(environ: Mapping[str, str]) -> int:
    """Run the agent; write its StageResult to the termination log and return its exit code."""
    hide_from_children()  # before any child exists, and before secrets are read
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        config = AgentConfig.from_env(environ)
        if config.parent:
            die_with_parent(config.parent)
        # asyncio.run would wait at its end for threads, such as a download that is not needed any more.
        result, code = asyncio.new_event_loop().run_until_complete(NodeProgram(config, environ).run())
    except FineTuneError as error:
        result, code = failed(error, None)
    if log_path := environ.get(Env.TERMINATION_LOG):
        Path(log_path).write_text(fit(result), "utf-8")
    return int(code)


class NodeProgram:
    """One node, from its first import to its release."""

    def __init__(self, config: AgentConfig, environ: Mapping[str, str]) -> None:
        self._config = config
        self._environ = environ
        self._agent: Agent | None = None
        self._leader: Leader | None = None
        self._server = AgentServer(
            config.token, lambda: self._agent is not None and self._agent.healthy, environ.get(Env.ATTEMPT, "")
        )
        self._workers = Workers(
            environ,
            config.work / "logs",
            on_event=lambda event: self._agent.on_worker_event(event) if self._agent else None,
            on_change=lambda: self._agent.on_worker_change() if self._agent else None,
        )

    async def run(self) -> tuple[StageResult, ExitCode]:
        """Take part until the leader releases this node, or a signal stops it."""
        loop = asyncio.get_running_loop()
        taking_part = asyncio.create_task(self._take_part())
        loop.add_signal_handler(signal.SIGTERM, self._on_sigterm, taking_part)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # from the terminal; `finetune run` sends SIGTERM
        reaping = asyncio.create_task(self._reap())
        try:
            return self._result(code := await taking_part), code
        except asyncio.CancelledError:
            log.info("asked to stop while starting")
            return self._result(ExitCode.DRAINED), ExitCode.DRAINED
        except FineTuneError as error:
            return failed(error, self._progress())
        finally:
            reaping.cancel()
            await self._server.close()
            await self._workers.close()

    def _on_sigterm(self, taking_part: asyncio.Task[ExitCode]) -> None:
        has_workers = self._leader is not None and self._leader.has_workers
        if self._agent is None or (self._agent.boots and not has_workers):
            taking_part.cancel()  # no other node depends on it yet
        else:
            self._agent.drain()

    async def _take_part(self) -> ExitCode:
        config = self._config
        job = load_given_job(config.job)
        await self._workers.warm_up(job.spec.training.report_to)  # first: its imports are the longest part of a start
        address = endpoint(config.host, await self._server.listen(interface(config.host), config.port))
        store = open_store(job.spec.storage.uri, self._environ)
        control = open_store(job.spec.storage.uri, self._environ, patience=CONTROL)
        run = run_prefix(job.metadata.namespace, job.metadata.name, config.uid)
        plan = Plan.model_validate_json(await patiently(store.get, run + File.PLAN))
        leads = config.node == 0
        energy = EnergyMeter.of_node(config.node, plan.layout.processes_per_node, self._environ)
        self._agent = Agent(config, plan, store, control, run, self._workers, address if leads else None, energy)
        if not leads:
            return await self._agent.run()
        restarts = job.spec.recovery.max_restarts if job.spec.recovery else None
        limits = Limits() if restarts is None else Limits(max_restarts=restarts)
        self._leader = Leader(plan, store, control, run, address, self._agent.incarnation, limits)
        self._server.lead(self._leader)
        return await self._lead(self._agent, self._leader)

    async def _lead(self, agent: Agent, leader: Leader) -> ExitCode:
        leading, running = asyncio.create_task(leader.run()), asyncio.create_task(agent.run())
        try:
            await asyncio.wait([running, leading], return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                leading.result()
            code = await running
            if code is not ExitCode.DRAINED:
                await leading  # the leader exits last
            return code
        finally:
            for task in (leading, running):
                task.cancel()
            await asyncio.gather(leading, running, return_exceptions=True)

    async def _reap(self) -> None:
        while True:
            reap_orphans(self._workers.zygote)
            await asyncio.sleep(REAP_SECONDS)

    def _result(self, code: ExitCode) -> StageResult:
        return result(code, self._progress())

    def _progress(self) -> Progress | None:
        """Return the end of the run for the termination message. DONE.json has the energy; an operator that reads it
        here may be too old to know it."""
        return self._leader.progress().model_copy(update={"energy": None}) if self._leader else None


def interface(host: str) -> str:
    """Return the interface to listen on, given the address that others use. It has one family, because port 0 means
    different ports in different families."""
    if ipaddress.ip_address(host).is_loopback:
        return host
    return "::" if ":" in host else "0.0.0.0"  # noqa: S104 - pods must reach it, and requests need the token


def endpoint(host: str, port: int) -> str:
    """Return `host:port` in the form of URLs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def result(code: ExitCode, progress: Progress | None) -> StageResult:
    """Return the result of this node: only the leader knows the progress of the run and why a gang failed."""
    end = StageResult(stage=Stage.TRAIN, succeeded=code is ExitCode.OK, progress=progress)
    failure = progress.failure if progress else None
    if code is ExitCode.OK:
        return end
    if failure is None:
        return end.model_copy(update={"category": FailureCategory.PREEMPTED, "note": "asked to stop"})
    problem = Problem(
        code=failure.category.value,
        field="status.failure",
        message=failure.message,
        cure=HANDLING[failure.category].cure,
    )
    return end.model_copy(update={"category": failure.category, "problems": (problem,)})


def failed(error: FineTuneError, progress: Progress | None) -> tuple[StageResult, ExitCode]:
    """Return the result of an agent that cannot continue. An agent that was cut off from its gang is a victim, so that
    its result does not describe the job."""
    log.error("%s", error)
    is_cut_off = any(problem.code == NOT_THE_LEADER for problem in error.problems)
    end = StageResult(
        stage=Stage.TRAIN,
        succeeded=False,
        category=error.category,
        problems=tuple(error.problems),
        progress=None if is_cut_off else progress,
    )
    return end, ExitCode.DISTRIBUTED if is_cut_off else exit_code(error)
