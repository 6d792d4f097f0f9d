"""`finetune run`: the three stages of a job on this machine, by the very programs that run in pods. Each "node" is an
agent process with a scratch folder of its own; this module stands in for the operator and the Job controller."""

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from finetune_api.beats import GenerationRecord, Progress
from finetune_api.contract import PROGRESS_HEADER, Env, ExitCode, File, run_prefix
from finetune_api.errors import FINAL_EXIT_CODES, FailureCategory, Problem, RunError, SpecError, StorageError
from finetune_api.messages import Artifact, Message, Stage
from finetune_api.plan import Plan
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.facts import CLUSTER_ONLY
from finetune_trainer.evaluations.stored import told
from finetune_trainer.run.children import Children
from finetune_trainer.run.identity import LocalRuns
from finetune_trainer.run.run_folder import RunFolder
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import ObjectStore, open_store

POLL_SECONDS = 0.5
AGENT_RESTARTS = 10  # of one node; the gang's own budget is recovery.maxRestarts
AGENT_DELAY_SECONDS = 1.0


class RunResult(Message):
    """What `finetune run --result FILE` writes.

    Attributes:
        state: Succeeded, or Planned for a dry run.
        already_complete: an earlier invocation had done all of it.
        output: the artifact's folder below `--output`, if that was given.
        tokens_per_second: non-padding tokens trained per second of step time.
        seconds: wall clock of this invocation.
    """

    state: str
    job: str
    uid: str
    artifacts: tuple[Artifact, ...]
    tokens_per_second: float
    seconds: float
    already_complete: bool
    output: str | None = None


@dataclass(frozen=True)
class LocalJob:
    """A job, ready to be run here.

    Attributes:
        job: with the command line's overrides applied.
        spec: the spec as JSON values, as the user wrote it, with the same overrides.
        work: scratch folder; every run has its own below it.
    """

    job: FineTuneJob
    spec: dict[str, Any]
    work: Path
    store: ObjectStore

    @classmethod
    def open(cls, job: FineTuneJob, work: Path) -> "LocalJob":
        """The job, if it may run.

        Raises:
            SpecError: it is suspended.
            StorageError: its storage cannot be used.
        """
        if job.spec.suspend:
            raise SpecError(
                Problem(
                    code="Suspended",
                    field="spec.suspend",
                    message="is true: nothing of the job may run",
                    cure="set it to false, or leave it out",
                )
            )
        spec = job.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
        return cls(job, spec, work, open_store(job.spec.storage.uri, storage_environment(job)))

    @property
    def without_effect(self) -> list[str]:
        """Fields that the job sets and that mean something on a cluster only."""
        return [f"spec.{name}" for name in CLUSTER_ONLY if self.spec.get(name)]

    def run_prefix(self, uid: str) -> str:
        """Key prefix of a run, with the trailing slash."""
        return run_prefix(self.job.metadata.namespace, self.job.metadata.name, uid)

    def runs(self) -> LocalRuns:
        """The runs there have been."""
        return LocalRuns(self.store, self.run_prefix("x").removesuffix("x/"), self.spec)


def storage_environment(job: FineTuneJob) -> dict[str, str]:
    """The environment of every child: what `spec.storage` and `spec.dataset.storage` say, and the user's own keys."""
    storage, data = job.spec.storage, job.spec.dataset.storage
    given = {Env.STORAGE_ENDPOINT: storage.endpoint, Env.STORAGE_REGION: storage.region, Env.LOCAL: "1"}
    if data:
        given |= {Env.DATA_ENDPOINT: data.endpoint, Env.DATA_REGION: data.region}
    return {**os.environ, **{name.value: value for name, value in given.items() if value}}


async def run(local: LocalJob, uid: str, screen: Screen, review: Callable[[], None] = lambda: None) -> RunResult:
    """Prepares, trains and exports; what is done already is not done again. A dry run ends after the plan.

    Args:
        review: called after prepare; what it raises ends the run before any training.

    Raises:
        FineTuneError: a stage failed; its problems say why.
        KeyboardInterrupt: stopped on request; the same call goes on from there.
    """
    began = time.monotonic()
    stages = LocalStages(local, uid, screen)
    complete = stages.is_done() and stages.exported() is not None
    if not complete:
        await stages.run(Stage.PREPARE)
        screen.planned(stages.plan())
    review()
    if not complete:
        if local.job.spec.dry_run:
            screen.explains(stages.plan())
            return RunResult(
                state="Planned",
                job=local.job.metadata.name,
                uid=uid,
                artifacts=(),
                tokens_per_second=0.0,
                seconds=time.monotonic() - began,
                already_complete=False,
            )
        if not stages.is_done():
            await stages.train()
        await stages.run(Stage.EXPORT)
    return RunResult(
        state="Succeeded",
        job=local.job.metadata.name,
        uid=uid,
        artifacts=stages.exported() or (),
        tokens_per_second=stages.final_progress().tokens_per_second,
        seconds=time.monotonic() - began,
        already_complete=complete,
    )


class LocalStages:
    """The stages of one run: what each is given, what it left, and whether it went well."""

    def __init__(self, local: LocalJob, uid: str, screen: Screen) -> None:
        self._local = local
        self._screen = screen
        self._uid = uid
        self._prefix = local.run_prefix(uid)
        self._folder = RunFolder(local.work / local.job.metadata.name / uid)
        self._token = os.environ.get(Env.TOKEN) or secrets.token_hex(16)  # given: by who wants to ask /progress too
        self._children = Children(screen)

    # ------------------------------------------------------------ facts

    def plan(self) -> Plan:
        """The plan that prepare wrote."""
        return Plan.model_validate_json(self._local.store.get(self._prefix + File.PLAN))

    def is_done(self) -> bool:
        """Whether training is finished and committed."""
        return self._local.store.head(self._prefix + File.DONE) is not None

    def final_progress(self) -> Progress:
        """How training ended."""
        return Progress.model_validate_json(self._local.store.get(self._prefix + File.DONE))

    def exported(self) -> tuple[Artifact, ...] | None:
        """The artifacts, if the export stage has finished."""
        result = self._folder.result(Stage.EXPORT)
        return result.artifacts if result and result.succeeded else None

    # ------------------------------------------------------------ stages

    async def run(self, stage: Stage) -> None:
        """Runs prepare or export to its end; its lines are shown."""
        self._folder.result_path(stage).unlink(missing_ok=True)
        with self._folder.locked(), self._children.stoppable():
            log = self._folder.log(stage)
            child = await self._children.spawn(f"finetune_trainer.{stage}", self._environment(stage), log, lines=True)
            assert child.stdout is not None
            async for line in child.stdout:
                self._screen.says(stage, line.decode(errors="replace").rstrip())
            code = await self._children.ended(child)
        self._check(stage, code)

    async def train(self) -> None:
        """Runs the gang, and nodes that stand by, to its end."""
        nodes = self.plan().layout.nodes + self._local.job.spec.spares
        charts = f"{self._local.store.uri}/{self._prefix}{File.OUTPUTS}/tensorboard"
        self._screen.says("charts", f"tensorboard --logdir {shlex.quote(charts.removeprefix('file://'))}")
        with self._folder.locked(), self._children.stoppable():
            self._screen.start()
            watching = asyncio.create_task(self._watch())
            try:
                codes = await asyncio.gather(*(self._keep_node(node) for node in range(nodes)))
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                self._screen.stop()
        for code in codes:
            self._check(Stage.TRAIN, code)
        progress = self.final_progress()
        self._screen.shows(progress)
        if progress.evals:
            self._screen.answered(told(self._local.store, self._prefix, progress.evals[-1].step).samples)
        for node in range(nodes):  # everything of worth is in storage now
            shutil.rmtree(self._folder.node(node), ignore_errors=True)

    async def _keep_node(self, node: int) -> int:
        """One node, restarted as a Job would replace its pod, until it ends with a verdict."""
        log = self._folder.log(f"agent-{node}")
        for _ in range(AGENT_RESTARTS):
            environment = self._environment(Stage.TRAIN, node)
            child = await self._children.spawn("finetune_trainer.agent", environment, log)
            code = await self._children.ended(child)
            if code in FINAL_EXIT_CODES or self._children.stopping:
                return code
            self._screen.says("node", f"agent of node {node} ended with {code}; starting it again")
            await asyncio.sleep(AGENT_DELAY_SECONDS)
        return code

    async def _watch(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, StorageError, ValueError):
                    raw = await asyncio.to_thread(self._local.store.get, self._prefix + File.GENERATION)
                    leader = GenerationRecord.model_validate_json(raw).leader
                    async with session.get(f"http://{leader}/progress", headers=PROGRESS_HEADER) as answer:
                        if answer.ok:
                            self._screen.shows(Progress.model_validate_json(await answer.text()))
                await asyncio.sleep(POLL_SECONDS)

    def _check(self, stage: Stage, code: int) -> None:
        """Raises what a stage's result and exit code say."""
        if self._children.stopping:
            raise KeyboardInterrupt
        if code == ExitCode.OK:
            return
        result = self._folder.result(stage)
        if result is not None and result.problems:
            raise RunError(result.problems, result.category or FailureCategory.UNKNOWN)
        raise RunError(
            Problem(
                code="StageEnded",
                field="status.phase",
                message=f"the {stage} stage ended with exit code {code} and left no reason",
                cure=f"read the logs below {self._folder.logs}",
            ),
            FailureCategory.UNKNOWN,
        )

    def _environment(self, stage: Stage, node: int = 0) -> dict[str, str]:
        folder = self._folder.node(node) if stage is Stage.TRAIN else self._folder.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        cores = len(os.sched_getaffinity(0))
        ranks = self.plan().world_size if stage is Stage.TRAIN else 1
        return {
            **storage_environment(self._local.job),
            Env.JOB: str(self._folder.write_job(self._local.job)),
            Env.JOB_UID: self._uid,
            Env.WORK_DIR: str(folder),
            Env.TERMINATION_LOG: str(self._folder.result_path(stage) if node == 0 else folder / "result.json"),
            Env.NODE_INDEX: str(node),
            Env.TOKEN: self._token,
            Env.AGENT_PORT: "0",
            Env.THREADS: str(max(1, cores // ranks)),
            Env.PARENT_PID: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
        }


def find_run(local: LocalJob, screen: Screen) -> str:
    """The uid to go on with: the last run of this very job, or a new one."""
    runs = local.runs()
    if uid := runs.last():
        done = local.store.head(local.run_prefix(uid) + File.DONE) is not None
        what = "is complete" if done else "goes on where it was"
        screen.says("run", f"{local.job.metadata.name} ({uid}) {what}; --fresh starts anew")
        return uid
    return begin_run(local, screen)


def begin_run(local: LocalJob, screen: Screen) -> str:
    """A new run; the runs before it keep what they made."""
    uid = local.runs().begin()
    screen.says("run", f"{local.job.metadata.name} ({uid}) begins")
    return uid
