"""The operator's loop over an API server in memory: what it asks for, when, and what it never drops."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.beats import Progress
from finetune_api.contract import CONTAINER
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import Phase
from finetune_operator import __main__ as program
from finetune_operator.cluster.kube import KubeError
from finetune_operator.loop import controller, metrics, progress
from finetune_operator.loop.controller import Controller
from finetune_operator.loop.news import News, at_rest
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.job_identity import JobKey
from tests.unit.operator_api import FakeApi, Object
from tests.unit.operator_worlds import RUNNING, SETTINGS, polled, running_objects, spec

KEY = JobKey("team", "a")
DUE = {"GET finetunejobs": 1, "LIST jobs": 1, "LIST pods": 1, "PATCH finetunejobs/status": 1}


class Clock:
    """Monotonic seconds that only a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Operator:
    """All parts of one replica but watch engine and elector; a status that is written is told as by a watch."""

    leads: bool = True
    says: Callable[[int], Progress] = lambda number: leader(step=number)
    clock: Clock = field(default_factory=Clock)
    polls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.api = FakeApi()
        self.queue: WorkQueue[JobKey] = WorkQueue()
        self.pace: WritePace[JobKey] = WritePace(60, self.clock)
        self.poller = Poller(SETTINGS.token_key, 0.005, self.queue.add, self.pace)
        self.controller = Controller(self.api, SETTINGS, self.queue, self.poller, self.pace, lambda: self.leads)
        self.news = News(self.queue, self.poller)
        self.api.changed = lambda item: self.news.job("MODIFIED", item)

    async def ask(self, host: str, *_: object) -> Progress:
        self.polls[host] += 1
        return self.says(self.polls[host])

    def add(self, name: str = "a", ip: str = "10.0.0.1") -> None:
        for plural, item in running_objects(name, ip):
            self.api.put(plural, item)

    def job(self, name: str = "a") -> Object:
        return self.api.find("finetunejobs", "team", name)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not true():  # noqa: ASYNC110 # the thing that is waited for is of any kind
                await asyncio.sleep(0.002)

    async def polled(self, times: int = 3, ip: str = "10.0.0.1") -> None:
        """Until so many more answers have been taken, and what they set off is done."""
        wanted = self.polls[ip] + times
        await self.until(lambda: self.polls[ip] >= wanted)
        await self.quiet()

    async def quiet(self) -> None:
        """Until nothing is left in the queue and nobody works."""
        for _ in range(3):
            await self.until(lambda: not (self.queue._dirty or self.queue._working))
            await asyncio.sleep(0)


def leader(step: int = 40, **more: Any) -> Progress:
    found = polled(step, **more).progress
    assert found
    return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operator, Callable[[Operator], Coroutine[Any, Any, None]]], None]:
    """Runs a test beside an operator that works and polls."""

    def run(operator: Operator, test: Callable[[Operator], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            monkeypatch.setattr(progress, "ask", operator.ask)
            parts = [asyncio.create_task(part.run()) for part in (operator.controller, operator.poller)]
            try:
                await test(operator)
                assert not any(part.done() for part in parts)
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)

        asyncio.run(main())

    return run


Run = Callable[[Operator, Callable[[Operator], Coroutine[Any, Any, None]]], None]


def test_a_running_job_costs_no_request_between_due_writes(run: Run) -> None:
    """Every answer has another step, loss and checkpoint."""

    async def test(operator: Operator) -> None:
        await operator.polled()
        for minute in range(3):
            operator.clock.now += 30
            operator.api.requests.clear()
            await operator.polled(5)
            assert operator.api.requests == {}, "half a minute after a write"
            operator.clock.now += 30
            await operator.polled(5)
            assert operator.api.requests == DUE, f"minute {minute}: one write, and the watch's word of it costs nothing"
            assert operator.job()["status"]["progress"]["step"] > 3

    checkpoints = leader().checkpoints
    operator = Operator(
        says=lambda number: leader(
            number, checkpoints=(checkpoints[0].model_copy(update={"step": number}),), checkpoint_count=number
        )
    )
    operator.add()
    run(operator, test)


@pytest.mark.parametrize(
    "news", [{"generation": 2}, {"phase": "recovering"}, {"phase": "failed"}], ids=["generation", "phase", "failed"]
)
def test_news_of_a_gang_is_looked_at_at_once(run: Run, news: dict[str, Any]) -> None:
    async def test(operator: Operator) -> None:
        await operator.polled()
        operator.api.requests.clear()
        operator.says = lambda number: leader(number).model_copy(update=news)
        await operator.polled(4)
        assert operator.api.requests["GET finetunejobs"], "no time has passed"

    operator = Operator()
    operator.add()
    run(operator, test)


def test_figures_are_written_when_due_though_nothing_has_changed_since(run: Run) -> None:
    """A gang that hangs: its last step stands on the object."""

    async def test(operator: Operator) -> None:
        await operator.polled()
        operator.says = lambda _: leader(77)
        await operator.polled()
        assert operator.job()["status"]["progress"]["step"] < 77
        operator.clock.now += 60
        await operator.polled()
        assert operator.job()["status"]["progress"]["step"] == 77

    operator = Operator()
    operator.add()
    run(operator, test)


def test_figures_whose_write_fails_are_written_by_the_next_try(run: Run) -> None:
    async def test(operator: Operator) -> None:
        await operator.polled()
        write, failed = operator.api.apply_status, []

        async def fail_once(body: Object) -> Object:
            operator.api.apply_status = write  # type: ignore[method-assign]
            failed.append(body)
            raise KubeError(409, "Conflict", "the object has been modified")

        operator.api.apply_status = fail_once  # type: ignore[method-assign]
        operator.says = lambda _: leader(77)
        await operator.polled()
        operator.clock.now += 60
        await operator.until(lambda: failed)
        await operator.until(lambda: operator.job()["status"]["progress"]["step"] == 77)

    operator = Operator()
    operator.add()
    run(operator, test)


def test_training_evaluating_and_saving_are_no_news_after_one_another(run: Run) -> None:
    async def test(operator: Operator) -> None:
        await operator.polled()
        operator.api.requests.clear()
        operator.says = lambda number: leader(number, phase=("train", "eval", "save")[number % 3])
        await operator.polled(6)
        assert operator.api.requests == {}

    operator = Operator()
    operator.add()
    run(operator, test)


def test_a_wake_up_while_the_lease_is_late_is_put_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server was away for a few seconds: the lease is stale, not lost, and no event comes twice."""
    monkeypatch.setattr(controller, "STALE_LEASE_SECONDS", 0.02)

    async def test(operator: Operator) -> None:
        await operator.quiet()
        operator.add()
        operator.queue.add(KEY)
        await operator.quiet()
        assert operator.api.requests["GET finetunejobs"] == 0, "it does nothing while another may lead"
        operator.leads = True
        await operator.until(lambda: operator.api.requests["GET finetunejobs"])

    run(Operator(leads=False), test)


def test_a_lease_that_goes_stale_during_a_look_forbids_the_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "STALE_LEASE_SECONDS", 0.02)
    looked = controller.decide

    def decide_slowly(*arguments: Any) -> Any:
        operator.leads = operator.api.requests["GET finetunejobs"] > 1
        return looked(*arguments)

    monkeypatch.setattr(controller, "decide", decide_slowly)

    async def test(operator: Operator) -> None:
        operator.api.put("finetunejobs", bare_job())
        operator.queue.add(KEY)
        await operator.until(lambda: operator.api.requests["GET finetunejobs"])
        await operator.quiet()
        assert not operator.api.requests["PATCH finetunejobs/status"]
        operator.leads = True
        await operator.until(lambda: operator.api.requests["POST jobs"])

    operator = Operator()
    run(operator, test)


def bare_job(**changes: Any) -> Object:
    """A job that nobody has looked at."""
    metadata = {"name": "a", "namespace": "team", "uid": "uid-a", "generation": 1}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec(**changes)}


def test_before_a_child_is_made_the_status_is_written_even_if_it_stays_the_same() -> None:
    """The write carries the version that was seen: whoever sees an old one is refused before it does harm."""

    async def test() -> None:
        operator = Operator()
        operator.api.put("finetunejobs", bare_job())
        await operator.controller.reconcile(KEY)
        operator.api.remove("jobs", "team", "a-prepare")
        await operator.controller.reconcile(KEY)
        operator.api.remove("jobs", "team", "a-prepare")
        stale, read = operator.job(), operator.api.get
        operator.api.put("finetunejobs", {**stale, "metadata": {**stale["metadata"], "generation": 2}})

        async def get_stale(*arguments: Any) -> Object:
            await read(*arguments)
            return stale

        operator.api.get = get_stale  # type: ignore[method-assign]
        with pytest.raises(KubeError) as refused:
            await operator.controller.reconcile(KEY)
        assert refused.value.conflict
        assert operator.api.requests["POST jobs"] == 2, "the third was not tried"

    asyncio.run(test())


@pytest.mark.parametrize("sidecar", [False, True], ids=["alone", "beside a sidecar"])
def test_how_long_a_dry_run_took_to_prepare_is_written_though_it_is_known_last(sidecar: bool) -> None:
    """Nobody polls a job without a gang, so that nobody grants it a write for figures."""

    async def test() -> None:
        operator = Operator()
        operator.api.put("finetunejobs", bare_job(dryRun=True))
        await operator.controller.reconcile(KEY)
        items = [item for _, item in running_objects("a", "10.0.0.1")]
        job, pod = (next(one for one in items if one["metadata"]["name"] == f"a-{name}") for name in STAGES)
        end = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        if sidecar:
            proxy = {"name": "proxy", "state": {"running": {}}}
            pod["status"] = {"phase": "Running", "containerStatuses": [*pod["status"]["containerStatuses"], proxy]}
            job["status"] = {}
            end["finishedAt"] = "2026-05-01T11:55:07Z"
        else:
            job["status"] = {"conditions": [{"type": "SuccessCriteriaMet", "status": "True"}]}
        operator.api.put("jobs", job)
        operator.api.put("pods", pod)
        await operator.controller.reconcile(KEY)
        assert operator.job()["status"]["phase"] == "Planned"
        if not sidecar:
            operator.api.put("jobs", {**job, "status": {**job["status"], "completionTime": "2026-05-01T11:55:07Z"}})
            await operator.controller.reconcile(KEY)
        assert operator.job()["status"]["accounting"]["preparingSeconds"] == 7
        writes = operator.api.requests["PATCH finetunejobs/status"]
        operator.api.remove("pods", "team", "a-prepare-0")
        await operator.controller.reconcile(KEY)
        assert operator.job()["status"]["accounting"]["preparingSeconds"] == 7
        assert operator.api.requests["PATCH finetunejobs/status"] - writes <= sidecar, "its Job is deleted, once"

    asyncio.run(test())


def test_a_job_that_was_made_again_has_no_progress_of_the_earlier_one(run: Run) -> None:
    """Its name is the same, and for a while the earlier leader still answers."""

    async def test(operator: Operator) -> None:
        await operator.polled()
        assert operator.job()["status"]["progress"]["step"]
        again = bare_job()
        again["metadata"]["uid"] = "uid-again"
        operator.api.remove("finetunejobs", "team", "a")
        operator.news.job("ADDED", operator.api.put("finetunejobs", again))
        operator.news.pod(last_words("uid-a"))
        await operator.until(lambda: operator.job().get("status", {}).get("phase"))
        await operator.quiet()
        status = operator.job()["status"]
        assert status["phase"] == "Preparing"
        assert "progress" not in status or "step" not in status["progress"]
        assert operator.poller.latest(KEY) is None
        assert KEY not in operator.poller._gangs, "the earlier leader is asked no more"

    operator = Operator()
    operator.add()
    run(operator, test)


STAGES = ("prepare", "prepare-0")
FINISHED = {"conditions": [{"type": "Complete", "status": "True", "reason": "Succeeded"}], "phase": "Succeeded"}


@pytest.mark.parametrize(
    ("job", "visited"),
    [
        (bare_job(), True),
        (bare_job() | {"status": FINISHED}, False),
        (bare_job(ttlSecondsAfterFinished=60) | {"status": FINISHED}, True),
    ],
    ids=["not finished", "finished", "finished, to be deleted later"],
)
def test_the_resync_leaves_finished_jobs_alone(job: Object, visited: bool) -> None:
    assert at_rest(job) is not visited

    async def test() -> None:
        operator = Operator(leads=False)  # so that keys are seen and nothing is done
        operator.api.put("finetunejobs", job)
        working = asyncio.create_task(operator.controller.run())
        await operator.until(lambda: operator.api.requests["LIST finetunejobs"])
        await operator.quiet()
        working.cancel()
        assert (KEY in operator.queue._timers) is visited

    asyncio.run(test())


@pytest.mark.parametrize(("kind", "status"), [("DELETED", {}), ("MODIFIED", FINISHED)], ids=["deleted", "finished"])
def test_what_a_leader_said_is_forgotten_with_its_job_by_a_standby_too(kind: str, status: Object) -> None:
    operator = Operator(leads=False)
    job = operator.api.put("finetunejobs", bare_job())
    operator.news.job("ADDED", job)
    operator.news.pod(last_words("uid-a"))
    assert operator.poller.latest(KEY)
    operator.news.job(kind, {**job, "status": status})
    assert operator.poller.latest(KEY) is None
    operator.news.pod(last_words("uid-a"))
    assert operator.poller.latest(KEY) is None, "its pods are deleted after it: nobody would forget them again"


def last_words(uid: str) -> Object:
    """A leader's pod that has ended."""
    result = StageResult(stage=Stage.TRAIN, succeeded=False, progress=leader()).model_dump_json()
    pod = next(item for _, item in running_objects("a", "10.0.0.1") if item["metadata"]["name"] == "a-train-1-0")
    pod["metadata"]["labels"]["finetune.dev/job-uid"] = uid
    ended = {"terminated": {"exitCode": 143, "reason": "Error", "message": result}}
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": ended}]}
    return pod


def test_one_list_of_events_serves_all_pods_that_start() -> None:
    """Beside the job, its Jobs and its pods there is one LIST of Events, however many pods and jobs wait for images."""

    async def test() -> None:
        operator = Operator()
        starting = {"containerStatuses": [{"name": CONTAINER, "state": {"waiting": {"reason": "ContainerCreating"}}}]}
        for name in ("a", "b"):
            operator.add(name)
            for index in range(2):
                pod = operator.api.find("pods", "team", f"{name}-train-1-{index}")
                operator.api.put("pods", {**pod, "status": starting})
        about = {"name": "e", "namespace": "team"}
        told = {"reason": "FailedMount", "message": "no such claim", "lastTimestamp": "2026-05-01T12:00:00Z"}
        involved = {"uid": "uid-a-train-1-1"}
        operator.api.put("events", {"metadata": about, "involvedObject": involved, "type": "Warning", **told})
        for name in ("a", "b"):
            await operator.controller.reconcile(JobKey("team", name))
        assert operator.api.requests["LIST events"] == 1
        conditions = {one["type"]: one["message"] for one in operator.job()["status"]["conditions"]}
        assert "no such claim" in conditions["Running"]

    asyncio.run(test())


def test_phases_are_counted_by_difference() -> None:
    def count(phase: Phase) -> float:
        return float(metrics.JOBS.labels(phase.value)._value.get())

    before = count(Phase.RUNNING)
    metrics.record_phase(("metrics", "a"), RUNNING)
    metrics.record_phase(("metrics", "a"), RUNNING)
    metrics.record_phase(("metrics", "b"), RUNNING)
    assert count(Phase.RUNNING) == before + 2
    metrics.record_phase(("metrics", "a"), RUNNING.model_copy(update={"phase": Phase.RECOVERING}))
    metrics.forget(("metrics", "b"))
    metrics.forget(("metrics", "b"))
    assert count(Phase.RUNNING) == before
    metrics.forget(("metrics", "a"))


def test_an_operator_waits_for_the_definition_before_it_watches_and_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch engine looks for its kinds once, when it starts: without them it would be ready and see no job."""
    monkeypatch.setattr(program, "CRD_SECONDS", 0.005)

    async def test() -> None:
        operator = Operator()
        watching, stop = asyncio.Event(), asyncio.Event()

        async def watch(*_: Any) -> None:
            watching.set()

        monkeypatch.setattr(program, "watch", watch)
        task = asyncio.create_task(program._watch(operator.api, SETTINGS, operator.news, watching, stop))
        await operator.until(lambda: operator.api.requests["GET apis"] > 2)
        assert not watching.is_set()
        operator.api.served = True
        await operator.until(watching.is_set)
        await task

    asyncio.run(test())
