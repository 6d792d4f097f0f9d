"""`finetune run`: the three stages of a job on this machine, with the same programs that run in pods. Each node is an
agent process with its own scratch folder; this module replaces the operator and the Job controller."""

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from finetune_api.beats import GenerationRecord, Progress
from finetune_api.contract import PROGRESS_HEADER, Env, ExitCode, File, run_prefix
from finetune_api.errors import FINAL_EXIT_CODES, FailureCategory, Problem, RunError, SpecError, StorageError
from finetune_api.messages import Artifact, Message, Stage
from finetune_api.plan import Plan
from finetune_api.results import Approval, ServeOutcome
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.field_facts import CLUSTER_ONLY
from finetune_trainer.evaluations.stored import load_evaluation
from finetune_trainer.export.evidence.signature import key_id
from finetune_trainer.export.push.destinations import check_logins
from finetune_trainer.run.asked_export import is_made_as_asked, is_measured_as_asked
from finetune_trainer.run.children import Children
from finetune_trainer.run.local_runs import LocalRuns
from finetune_trainer.run.run_folder import RunFolder
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import ObjectStore, open_store

POLL_SECONDS = 0.5
AGENT_RESTARTS = 10  # for one node; the gang's budget is recovery.maxRestarts
AGENT_DELAY_SECONDS = 1.0


class RunResult(Message):
    """The file of `finetune run --result FILE`.

    Attributes:
        state: Succeeded, or Planned for a dry run.
        already_complete: whether an earlier invocation had completed the run.
        approval: what the gates say; None without gates.
        serving: what the test on a server has shown; None without such a test.
        output: the first artifact's folder below `--output`, if given.
        tokens_per_second: non-padding tokens trained per second of step time.
        seconds: wall-clock time of this invocation.
        report: URI of the report of the run; None for a dry run, and for a run of an older version.
    """

    state: str
    job: str
    uid: str
    artifacts: tuple[Artifact, ...]
    tokens_per_second: float
    seconds: float
    already_complete: bool
    approval: Approval | None = None
    serving: ServeOutcome | None = None
    output: str | None = None
    report: str | None = None


@dataclass(frozen=True)
class LocalJob:
    """A job that can run on this machine.

    Attributes:
        job: with the command line's overrides applied.
        spec: the user's spec as JSON values, with the same overrides.
        work: scratch folder; every run has its own folder below it.
        settings: environment variables of the stages, over those of the run.
    """

    job: FineTuneJob
    spec: dict[str, Any]
    work: Path
    store: ObjectStore
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, job: FineTuneJob, work: Path) -> "LocalJob":
        """Return the job, if it may run.

        Raises:
            SpecError: it is suspended, or a key that signs or that opens a place of a push is missing or not usable.
            StorageError: its storage cannot be used.
        """
        if job.spec.suspend:
            raise SpecError(
                Problem(
                    code="Suspended",
                    field="spec.suspend",
                    message="is true, so that the job may not run",
                    cure="set it to false, or omit it",
                )
            )
        key = os.environ.get(Env.SIGNING_KEY)
        if key:
            key_id(Path(key))
        if job.spec.export.signing and not key:
            raise SpecError(
                Problem(
                    code="SigningKeyMissing",
                    field="spec.export.signing.keySecretRef",
                    message=f"names a Secret of a cluster, and {Env.SIGNING_KEY} is not set on this machine",
                    cure=f"set {Env.SIGNING_KEY} to the path of the private key, or omit spec.export.signing",
                )
            )
        check_logins(job.spec.export.push, os.environ)
        spec = job.model_dump(mode="json", by_alias=True, exclude_unset=True)["spec"]
        return cls(job, spec, work, open_store(job.spec.storage.uri, storage_environment(job)))

    @property
    def without_effect(self) -> list[str]:
        """Fields of the job that have an effect on a cluster only."""
        return [path for path in CLUSTER_ONLY if _is_set(self.spec, path.split(".")[1:])]

    def run_prefix(self, uid: str) -> str:
        """Return the key prefix of a run, with the trailing slash."""
        return run_prefix(self.job.metadata.namespace, self.job.metadata.name, uid)

    def runs(self) -> LocalRuns:
        """Return the runs of this job."""
        return LocalRuns(self.store, self.run_prefix("x").removesuffix("x/"), self.spec)


def storage_environment(job: FineTuneJob) -> dict[str, str]:
    """Return the environment of every child: the user's own, with `spec.storage` and `spec.dataset.storage`."""
    storage, data = job.spec.storage, job.spec.dataset.storage
    given = {Env.STORAGE_ENDPOINT: storage.endpoint, Env.STORAGE_REGION: storage.region, Env.LOCAL: "1"}
    if data:
        given |= {Env.DATA_ENDPOINT: data.endpoint, Env.DATA_REGION: data.region}
    return {**os.environ, **{name.value: value for name, value in given.items() if value}}


async def run_locally(
    local: LocalJob, uid: str, screen: Screen, review: Callable[[], None] = lambda: None
) -> RunResult:
    """Prepare, train and export; skip what is complete already. A dry run ends after the plan.

    Args:
        review: called after prepare; an exception ends the run before training.

    Raises:
        FineTuneError: a stage failed; its problems are the reasons.
        KeyboardInterrupt: the user stopped the run; the same call continues it.
    """
    began = time.monotonic()
    stages = LocalStages(local, uid, screen)
    complete = stages.is_done() and stages.exported_as_asked() and stages.judged_as_asked()
    if not complete:
        await stages.run(Stage.PREPARE)
        screen.show_plan(stages.plan())
    review()
    if not complete:
        if local.job.spec.dry_run:
            screen.show_choices(stages.plan())
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
        approval=stages.approval(),
        serving=stages.serving(),
        tokens_per_second=stages.final_progress().tokens_per_second,
        seconds=time.monotonic() - began,
        already_complete=complete,
        report=stages.report(),
    )


class LocalStages:
    """The stages of one run: their processes, environments and results."""

    def __init__(self, local: LocalJob, uid: str, screen: Screen) -> None:
        self._local = local
        self._screen = screen
        self._uid = uid
        self._prefix = local.run_prefix(uid)
        self._folder = RunFolder(local.work / local.job.metadata.name / uid)
        self._token = os.environ.get(Env.TOKEN) or secrets.token_hex(16)  # a caller that reads /progress sets it
        self._children = Children(screen)

    # ------------------------------------------------------------ results

    def plan(self) -> Plan:
        """Return the plan that prepare wrote."""
        return Plan.model_validate_json(self._local.store.get(self._prefix + File.PLAN))

    def is_done(self) -> bool:
        """Return whether training is complete and committed."""
        return self._local.store.head(self._prefix + File.DONE) is not None

    def final_progress(self) -> Progress:
        """Return the progress at the end of training."""
        return Progress.model_validate_json(self._local.store.get(self._prefix + File.DONE))

    def exported(self) -> tuple[Artifact, ...] | None:
        """Return the artifacts; None if the export stage has not made every form that the job asks for."""
        result = self._folder.result(Stage.EXPORT)
        if result is None or not result.succeeded:
            return None
        spec = self._local.job.spec
        made = {one.uri.rpartition("/")[2]: one for one in result.artifacts}
        wanted = spec.export.folders(spec.method.type)
        return tuple(made[name] for name in wanted) if made.keys() >= set(wanted) else None

    def exported_as_asked(self) -> bool:
        """Return whether every artifact is in storage with the settings of the job and the signature of its key, and
        was pushed to every place."""
        if self.exported() is None:
            return False
        job = self._local.job
        return is_made_as_asked(job.spec, self._local.store, self._prefix, storage_environment(job))

    def approval(self) -> Approval | None:
        """Return what the gates say of the last export; None without gates."""
        result = self._folder.result(Stage.EXPORT)
        return result.approval if result and self._local.job.spec.export.gates else None

    def serving(self) -> ServeOutcome | None:
        """Return what the test on a server has shown of the last export; None without such a test."""
        result = self._folder.result(Stage.EXPORT)
        return result.serving if result and self._local.job.spec.export.serve_test else None

    def judged_as_asked(self) -> bool:
        """Return whether the last export was judged, and ran through suites, with the settings and gates of the job."""
        job = self._local.job
        return is_measured_as_asked(job.spec, self._local.store, self._prefix, storage_environment(job))

    def report(self) -> str | None:
        """Return the URI of the report of the run; None if the export has not made one."""
        key = self._prefix + File.RUN_REPORT
        return f"{self._local.store.uri}/{key}" if self._local.store.head(key) else None

    # ------------------------------------------------------------ stages

    async def run(self, stage: Stage) -> None:
        """Run prepare or export to its end, and show its lines."""
        self._folder.result_path(stage).unlink(missing_ok=True)
        with self._folder.locked(), self._children.stoppable():
            log = self._folder.log(stage)
            child = await self._children.spawn(f"finetune_trainer.{stage}", self._environment(stage), log, lines=True)
            assert child.stdout is not None
            async for line in child.stdout:
                self._screen.show_line(stage, line.decode(errors="replace").rstrip())
            code = await self._children.ended(child)
        self._check(stage, code)

    async def train(self, until: Callable[[], bool] | None = None) -> None:
        """Run the gang, with its spares, to its end.

        Args:
            until: asked in a thread; as soon as it is true, the gang is killed. None = the gang ends by itself.
        """
        nodes = self.plan().layout.nodes + self._local.job.spec.spares
        charts = f"{self._local.store.uri}/{self._prefix}{File.OUTPUTS}/tensorboard"
        self._screen.show_line("charts", f"tensorboard --logdir {shlex.quote(charts.removeprefix('file://'))}")
        with self._folder.locked(), self._children.stoppable():
            self._screen.start()
            watching = [asyncio.create_task(self._watch())]
            watching += [asyncio.create_task(self._kill_when(until))] if until else []
            try:
                codes = await asyncio.gather(*(self._keep_node(node) for node in range(nodes)))
            finally:
                for task in watching:
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)
                self._screen.stop()
        if not self._children.killed:
            for code in codes:
                self._check(Stage.TRAIN, code)
            progress = self.final_progress()
            self._screen.show_progress(progress)
            if progress.evals:
                evaluation = load_evaluation(self._local.store, self._prefix, progress.evals[-1].step)
                self._screen.show_samples(evaluation.samples)
        for node in range(nodes):  # storage has all results by now
            shutil.rmtree(self._folder.node(node), ignore_errors=True)

    async def _keep_node(self, node: int) -> int:
        """Run one node, and start it again as a Job would replace its pod, until it exits with a final code."""
        log = self._folder.log(f"agent-{node}")
        for _ in range(AGENT_RESTARTS):
            environment = self._environment(Stage.TRAIN, node)
            child = await self._children.spawn("finetune_trainer.agent", environment, log)
            code = await self._children.ended(child)
            if code in FINAL_EXIT_CODES or self._children.stopping or self._children.killed:
                return code
            self._screen.show_line("node", f"agent of node {node} exited with code {code}; starting it again")
            await asyncio.sleep(AGENT_DELAY_SECONDS)
            if self._children.killed:
                break
        return code

    async def _kill_when(self, reached: Callable[[], bool]) -> None:
        while not await asyncio.to_thread(reached):  # noqa: ASYNC110 - it asks a storage
            await asyncio.sleep(POLL_SECONDS)
        self._children.kill()

    async def _watch(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, StorageError, ValueError):
                    raw = await asyncio.to_thread(self._local.store.get, self._prefix + File.GENERATION)
                    leader = GenerationRecord.model_validate_json(raw).leader
                    async with session.get(f"http://{leader}/progress", headers=PROGRESS_HEADER) as answer:
                        if answer.ok:
                            self._screen.show_progress(Progress.model_validate_json(await answer.text()))
                await asyncio.sleep(POLL_SECONDS)

    def _check(self, stage: Stage, code: int) -> None:
        """Raise the error of a stage that has failed."""
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
                message=f"the {stage} stage exited with code {code} and wrote no reason",
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
            **self._local.settings,
        }


def find_run(local: LocalJob, screen: Screen) -> str:
    """Return the uid of the last run of this very job, or of a new run."""
    runs = local.runs()
    if uid := runs.last():
        done = local.store.head(local.run_prefix(uid) + File.DONE) is not None
        state = "is complete" if done else "continues"
        screen.show_line("run", f"{local.job.metadata.name} ({uid}) {state}; --fresh starts anew")
        return uid
    return begin_run(local, screen)


def begin_run(local: LocalJob, screen: Screen) -> str:
    """Begin a new run and return its uid; earlier runs and their artifacts stay."""
    uid = local.runs().begin()
    screen.show_line("run", f"{local.job.metadata.name} ({uid}) begins")
    return uid


def _is_set(spec: dict[str, Any], names: list[str]) -> bool:
    """Return whether the job gives a field a value, by the names that lead to it; of a list, in any item."""
    value: Any = spec
    for place, name in enumerate(names):
        if isinstance(value, list):
            return any(_is_set(one, names[place:]) for one in value)
        value = value.get(name) if isinstance(value, dict) else None
    return bool(value)
