"""Worlds for the tests of the operator's pure parts: a job and children in any state, in few words."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.beats import CheckpointFacts, Failure, Progress, Recovery, RecoveryCounts
from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Artifact, DatasetFacts, MethodType, SplitFacts, Stage, Task
from finetune_api.results import PlanSummary, StageResult
from finetune_api.v1alpha1 import FineTuneJobStatus, Phase, parse_job
from finetune_operator.objects.facts import ConditionFact, StageJob, StagePod
from finetune_operator.objects.job_identity import AcceptedJob, Owner
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.resources import secret_name
from finetune_operator.policy.decide import decide
from finetune_operator.policy.world import Create, Delete, JobDecision, ObservedJob, Polled, Release
from finetune_operator.settings import Settings

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
UID = "5e0c7c5e-0000-4000-8000-000000000001"

SETTINGS = Settings(
    namespaces=(),
    trainer_image="finetune-trainer:1",
    image_pull_policy="IfNotPresent",
    token_key=b"0123456789abcdef",
    lease_namespace="system",
    identity="one",
    lease_seconds=15,
    resync_seconds=300,
    poll_seconds=5,
    progress_seconds=60,
    force_delete=True,
    fence_seconds=35,
    node_toleration_seconds=30,
    server_start_seconds=600,
    concurrency=4,
    requests=8,
    http_port=8080,
    log_level="info",
    read_nodes=True,
    hub_endpoint="",
    run_as_user=1000,
)

PLAN = PlanSummary(
    task=Task.CAUSAL_LM,
    method=MethodType.LORA,
    model="tiny",
    commit="abc",
    parameters=1_200_000,
    size_bytes=4_800_000,
    nodes=2,
    processes_per_node=1,
    zero_stage=2,
    micro_batch=2,
    gradient_accumulation=1,
    global_batch=4,
    max_steps=100,
    learning_rate=1e-4,
    checkpoint_every_steps=10,
    checkpoint_bytes=1_000_000,
    grace_seconds=75,
    scratch_bytes=2_000_000_000,
    choices=("spec.training.learning_rate = 0.0001: usual for lora",),
)
DATA = DatasetFacts(sha256="d" * 64, train=SplitFacts(rows=500, tokens=9000, trained_tokens=8000, longest=40))
PREPARED = StageResult(stage=Stage.PREPARE, succeeded=True, plan=PLAN, dataset=DATA)
EXPORTED = StageResult(
    stage=Stage.EXPORT,
    succeeded=True,
    artifacts=(Artifact(kind="adapter", uri="s3://b/p/jobs/team/a/artifacts/adapter", step=100),),
)
BROKEN = StageResult(
    stage=Stage.PREPARE,
    succeeded=False,
    category=FailureCategory.DATA_ERROR,
    problems=(
        Problem(
            code="InvalidRow",
            field="spec.dataset.train",
            message="is no JSON",
            cure="mend the row",
            file="train.jsonl",
            lines=(214,),
        ),
    ),
)


def spec(**changes: Any) -> dict[str, Any]:
    """A small good spec, with changes at its top level."""
    return {
        "model": {"uri": "s3://m/tiny"},
        "dataset": {"train": "s3://d/train.jsonl"},
        "method": {"type": "lora"},
        "nodes": 2,
        "storage": {"uri": "s3://b/p", "credentialsSecretRef": {"name": "s3"}},
        **changes,
    }


def world(*children: StageJob | StagePod, status: FineTuneJobStatus | None = None, **more: Any) -> ObservedJob:
    """A job and its children; `spec_` are changes of the spec, the rest are attributes of ObservedJob."""
    raw = spec(**more.pop("spec_", {}))
    job = parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "a", "namespace": "team", "uid": UID},
            "spec": raw,
        }
    )
    owner = Owner("a", "team", UID)
    seen = ObservedJob(
        owner=owner,
        generation=1,
        resource_version="7",
        deleting=False,
        job=AcceptedJob(owner, job.spec, raw),
        ttl_seconds=raw.get("ttlSecondsAfterFinished"),
        status=status or FineTuneJobStatus(),
        jobs=tuple(child for child in children if isinstance(child, StageJob)),
        pods=tuple(child for child in children if isinstance(child, StagePod)),
    )
    return replace(seen, **more)


def stage_job(stage: Stage, attempt: int = 0, *conditions: str, **more: Any) -> StageJob:
    """A Job of a stage; `conditions` hold."""
    return replace(
        StageJob(
            name=f"a-{stage}-{attempt}" if attempt else f"a-{stage}",
            uid=f"uid-{stage}-{attempt}",
            stage=stage,
            attempt=attempt,
            pods=2 if stage is Stage.TRAIN else 1,
            created=NOW - timedelta(minutes=5),
            deleting=False,
            suspended=False,
            conditions={name: ConditionFact(True, f"{name}Reason", f"{name} it is") for name in conditions},
            completed_at=None,
        ),
        **more,
    )


def pod(stage: Stage, index: int = 0, attempt: int = 0, **more: Any) -> StagePod:
    """A pod that runs and is ready."""
    return replace(
        StagePod(
            name=f"a-{stage}-{attempt}-{index}-x",
            uid=f"uid-{stage}-{attempt}-{index}",
            stage=stage,
            attempt=attempt,
            index=index,
            node=f"n{index + 1}",
            ip=f"10.0.0.{index + 1}",
            phase="Running",
            ready=True,
            created=NOW - timedelta(minutes=4),
            deleted_at=None,
            grace_seconds=0,
            waiting=None,
            unschedulable="",
            exit_code=None,
            ended="",
            message="",
            disruption="",
            reason="",
        ),
        **more,
    )


def ended(stage: Stage, result: StageResult | str, index: int = 0, attempt: int = 0, code: int = 0) -> StagePod:
    """A pod that has ended and left a result."""
    message = result if isinstance(result, str) else result.model_dump_json()
    return pod(
        stage,
        index,
        attempt,
        phase="Failed" if code else "Succeeded",
        ready=False,
        exit_code=code,
        ended="Error" if code else "Completed",
        message=message,
    )


def prepared_children() -> tuple[StageJob | StagePod, ...]:
    """Prepare has succeeded."""
    return stage_job(Stage.PREPARE, 0, "Complete"), ended(Stage.PREPARE, PREPARED)


def gang(attempt: int = 1, *, ready: Sequence[int] = (0, 1), nodes: int = 2) -> tuple[StageJob | StagePod, ...]:
    """A train Job whose pods run; those of `ready` beat."""
    pods = [pod(Stage.TRAIN, index, attempt, ready=index in ready) for index in range(nodes)]
    return stage_job(Stage.TRAIN, attempt, pods=nodes), *pods


def running_status(attempt: int = 1) -> FineTuneJobStatus:
    """The status of a job whose gang runs, as the operator would have written it."""
    before = decided(world(*prepared_children())).status
    return decided(world(*prepared_children(), *gang(attempt), status=before)).status


def decided(seen: ObservedJob, now: datetime = NOW) -> JobDecision:
    """The decision for a world."""
    return decide(seen, now, SETTINGS)


def polled(step: int = 40, phase: str = "train", recoveries: Sequence[Recovery] = (), **more: Any) -> Polled:
    """A leader that answered just now."""
    totals = RecoveryCounts(count=len(recoveries), restarts=0, lost_steps=0, seconds=0.0)
    progress = Progress(
        phase=phase,
        generation=1 + len(recoveries),
        step=step,
        max_steps=100,
        epoch=0.8,
        loss=1.25,
        tokens_per_second=12_400.0,
        eta_seconds=130.0,
        checkpoints=(CheckpointFacts(step=30, saved="2026-05-01T11:59:00+00:00", size_bytes=1000),),
        checkpoint_count=3,
        recoveries=tuple(recoveries),
        recovery_totals=totals,
    )
    return Polled(progress.model_copy(update=more), NOW)


def gang_failure(**more: Any) -> StageResult:
    """What a leader leaves behind whose gang has failed."""
    failure = Failure(
        category=FailureCategory.DIVERGED, node=1, rank=1, exit_code=78, message="the loss is NaN", log_tail="step 41"
    )
    problem = Problem(code="Diverged", field="status.failure", message="the loss is NaN", cure="lower the rate")
    progress = polled().progress
    assert progress
    return StageResult(
        stage=Stage.TRAIN,
        succeeded=False,
        category=FailureCategory.DIVERGED,
        problems=(problem,),
        progress=progress.model_copy(update={"failure": failure}),
    ).model_copy(update=more)


def running_objects(name: str, ip: str, namespace: str = "team") -> list[tuple[str, dict[str, Any]]]:
    """A running job, its Jobs and pods as the API server keeps them; `ip` is its leader's. Each with its plural."""
    uid = f"uid-{name}"
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job-name": name}
    created = "2026-05-01T11:55:00Z"
    made: list[tuple[str, dict[str, Any]]] = []

    def add(plural: str, suffix: str, stage: str, attempt: str, owner: str, **more: Any) -> None:
        metadata = {
            "name": f"{name}-{suffix}",
            "namespace": namespace,
            "uid": f"{uid}-{suffix}",
            "creationTimestamp": created,
            "labels": {**labels, "finetune.dev/job-uid": uid, "finetune.dev/stage": stage, **_attempt_label(attempt)},
            "annotations": {"batch.kubernetes.io/job-completion-index": suffix[-1]} if plural == "pods" else {},
            "ownerReferences": [{"kind": "Job", "name": owner, "uid": owner, "controller": True}],
        }
        made.append((plural, {"metadata": metadata, **more}))

    complete = {"conditions": [{"type": "Complete", "status": "True"}], "completionTime": created}
    add("jobs", "prepare", "prepare", "", uid, spec={"parallelism": 1}, status=complete)
    add("jobs", "train-1", "train", "1", uid, spec={"parallelism": 2}, status={})
    said = {"terminated": {"exitCode": 0, "reason": "Completed", "message": PREPARED.model_dump_json()}}
    ended_well = {"phase": "Succeeded", "containerStatuses": [{"name": "trainer", "state": said}]}
    add("pods", "prepare-0", "prepare", "", f"{uid}-prepare", spec={"nodeName": "n1"}, status=ended_well)
    for index in range(2):
        runs = {
            "phase": "Running",
            "podIP": ip if index == 0 else f"10.1.0.{index}",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "trainer", "state": {"running": {}}}],
        }
        add("pods", f"train-1-{index}", "train", "1", f"{uid}-train-1", spec={"nodeName": f"n{index}"}, status=runs)
    metadata = {"name": name, "namespace": namespace, "uid": uid, "generation": 1, "creationTimestamp": created}
    whole = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": spec()}
    status = running_status().model_dump(mode="json", by_alias=True, exclude_none=True)
    return [("finetunejobs", {**whole, "status": status}), *made]


def _attempt_label(attempt: str) -> dict[str, str]:
    return {"finetune.dev/attempt": attempt} if attempt else {}


def acts(seen: ObservedJob) -> list[str]:
    """The actions of a decision, in words."""
    words = []
    for action in decided(seen).actions:
        match action:
            case Create(kind, body):
                words.append(f"create {body['metadata']['name']}")
                assert kind in {Kind.JOB, Kind.SECRET}
            case Delete(_, name, _):
                words.append(f"delete {name}")
            case Release(name, _, node):
                words.append(f"release {name} from {node}")
    return words


@dataclass(frozen=True)
class Case:
    """One world: its name, what is seen, the phase and reason it gets, and what is done."""

    name: str
    seen: ObservedJob
    phase: Phase
    reason: str
    acts: list[str] = field(default_factory=list)
    says: str = ""

    def __str__(self) -> str:
        return self.name


def check(case: Case) -> None:
    """What is decided is what the case says."""
    decision = decided(case.seen)
    assert (decision.status.phase, decision.status.reason) == (case.phase, case.reason)
    assert acts(case.seen) == case.acts
    said = " ".join(one.message for one in decision.status.conditions)
    assert case.says in said


def check_again(case: Case) -> None:
    """Decided again from its own status, later, a world without news gives the same status: nothing is written."""
    first = decided(case.seen).status
    again = decided(replace(case.seen, status=first), NOW + timedelta(seconds=90)).status
    same = FineTuneJobStatus.model_validate_json(first.model_dump_json(by_alias=True))
    assert same == first, "a status survives its way through JSON"
    if first.phase is not Phase.STARTING or not case.acts:
        assert again == first


PREPARE, TRAIN, EXPORT = Stage.PREPARE, Stage.TRAIN, Stage.EXPORT
RUNNING = running_status()
TOKEN_SECRET = secret_name(world().owner, SETTINGS)
SUSPEND: dict[str, Any] = {"spec_": {"suspend": True}}
DRY: dict[str, Any] = {"spec_": {"dryRun": True}}
DRAINED: dict[str, Any] = {"phase": "Failed", "ready": False, "exit_code": 143, "ended": "Error"}
EVERYTHING_DONE = world(
    *prepared_children(),
    stage_job(TRAIN, 1, "Complete"),
    stage_job(EXPORT, 0, "Complete"),
    ended(EXPORT, EXPORTED),
    status=RUNNING,
)
