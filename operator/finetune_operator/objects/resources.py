"""From a FineTuneJob to the objects that carry it out: one Job per stage and attempt, and the Secret with the gang's
token. Pure. Each object is created once and never applied again, because a queue may own fields of a Job later."""

import base64
import hashlib
import hmac
import json

from finetune_api.contract import (
    AGENT_PORT,
    API_VERSION,
    CONTAINER,
    JOB_ANNOTATION,
    KIND,
    MANAGER,
    PROGRESS_TOKEN_ANNOTATION,
    Env,
    ExitCode,
    Label,
    PodPath,
)
from finetune_api.errors import VERDICTS
from finetune_api.messages import Stage
from finetune_api.quantity import parse_quantity
from finetune_operator.objects import pods
from finetune_operator.objects.environment import from_field, from_secret, variable
from finetune_operator.objects.facts import INDEX_ANNOTATION
from finetune_operator.objects.inputs import PodInputs, export_inputs, prepare_inputs
from finetune_operator.objects.job_identity import AcceptedJob, Owner
from finetune_operator.objects.kinds import Object
from finetune_operator.objects.machines import NodeGpu, gpu_resources
from finetune_operator.objects.serving import without_server
from finetune_operator.settings import Settings

# The leader and the operator count failures; the Job itself never gives up on an index.
UNLIMITED = 2_147_483_647
# Retries of prepare for any fault, and of export for its own faults. Storage outages never end an export.
STAGE_RETRIES = 3
STAGE_GRACE_SECONDS = 30
EXPORT_RESOURCES = {"requests": {"cpu": "1", "memory": "4Gi"}}
# Two processes tokenise within 1.5 GiB, whatever the size of the data; the limit is for unforeseen cases.
PREPARE_RESOURCES = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
TOKEN_KEY = "token"


def token(key: bytes, uid: str) -> str:
    """Return the bearer token of a job's gang. It is computed, so the operator need not store it or read a Secret."""
    return hmac.new(key, uid.encode(), "sha256").hexdigest()


def token_secret(owner: Owner, settings: Settings) -> Object:
    """Build the Secret that gives the token to the training pods."""
    value = base64.b64encode(token(settings.token_key, owner.uid).encode()).decode()
    metadata = {**_metadata(owner, secret_name(owner, settings)), "labels": _labels(owner)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "immutable": True,
        "data": {TOKEN_KEY: value},
    }


def prepare_job(job: AcceptedJob, settings: Settings, gpu: NodeGpu | None = None) -> Object:
    """Build the Job that checks data and model, and plans the run.

    Args:
        gpu: that training can count on; None if unknown.
    """
    wanted = job.spec.prepare.resources if job.spec.prepare else None
    resources = pods.requirements(wanted) if wanted else PREPARE_RESOURCES
    built = _stage_job(job, settings, Stage.PREPARE, resources, prepare_inputs(job, settings, resources, gpu))
    built["spec"]["backoffLimit"] = STAGE_RETRIES
    return built


def export_job(job: AcceptedJob, settings: Settings, attempt: int = 1, unserved: str = "") -> Object:
    """Build the Job that makes artifacts from the best checkpoint.

    The Job controller retries it without limit and with growing delays, so that no storage outage strands a finished
    training. `decide` counts the failures that are the export's own.

    Args:
        unserved: why the container of `export.serveTest` is left out; empty = it is not.
    """
    if unserved:
        job = without_server(job)
    wanted = job.spec.export.resources
    resources = pods.requirements(wanted) if wanted else EXPORT_RESOURCES
    number = attempt if attempt > 1 else 0  # the name of the first export has no number
    built = _stage_job(job, settings, Stage.EXPORT, resources, export_inputs(job, settings, unserved), number)
    built["spec"]["backoffLimit"] = UNLIMITED
    return built


def train_job(job: AcceptedJob, settings: Settings, attempt: int, *, grace_seconds: int, scratch_bytes: int) -> Object:
    """Build the Indexed Job of one attempt, with `nodes` pods and the spares.

    Args:
        grace_seconds: time that a pod gets to save and upload when it is asked to stop.
        scratch_bytes: node-local space of a pod if the user sets none.
    """
    spec, owner = job.spec, job.owner
    size = int(parse_quantity(spec.scratch.size)) if spec.scratch and spec.scratch.size else scratch_bytes
    template = pods.pod_spec(
        job,
        settings,
        _agent_container(job, settings, attempt, size),
        grace_seconds=grace_seconds,
        placement=pods.training_placement(job, settings),
        scratch=pods.training_scratch(job, size),
    )
    labels = {**_labels(owner), Label.STAGE: Stage.TRAIN.value, Label.ATTEMPT: str(attempt)}
    count = spec.nodes + spec.spares
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            **_metadata(owner, stage_job_name(owner, Stage.TRAIN, attempt)),
            "labels": labels,
            "annotations": {PROGRESS_TOKEN_ANNOTATION: "read-only"},
        },
        "spec": {
            "completionMode": "Indexed",
            "parallelism": count,
            "completions": count,
            "backoffLimitPerIndex": UNLIMITED,
            "podReplacementPolicy": "Failed",  # one index never has two pods
            "podFailurePolicy": {"rules": _failure_rules()},
            # The leader exits last. Its exit code 0 means that training is done, even if a spare was never scheduled.
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "template": _pod_template(job, template, labels),
        },
    }


def secret_name(owner: Owner, settings: Settings) -> str:
    """Return the name of the Secret with the token. Another key of the operator gives another name, and the next
    attempt uses it."""
    digest = hashlib.sha256(token(settings.token_key, owner.uid).encode()).hexdigest()
    return f"{owner.name}-token-{digest[:8]}"


def stage_job_name(owner: Owner, stage: Stage, attempt: int = 0) -> str:
    """Return the name of the Job of a stage."""
    return f"{owner.name}-{stage}-{attempt}" if attempt else f"{owner.name}-{stage}"


def threads(job: AcceptedJob) -> int:
    """Return the intra-op threads of each worker, from the CPUs of the pod; 0 = the agent counts its cores."""
    resources = job.spec.resources_per_node
    cpu = resources.limits.get("cpu") or resources.requests.get("cpu")
    if cpu is None:
        return 0
    workers = job.spec.processes_per_node or sum(gpu_resources(job).values()) or 1
    return max(1, int(parse_quantity(cpu)) // workers)


def _agent_container(job: AcceptedJob, settings: Settings, attempt: int, scratch_bytes: int) -> Object:
    scratch = job.spec.scratch
    resources = pods.requirements(job.spec.resources_per_node)
    if not (scratch and (scratch.storage_class_name or scratch.medium == "Memory")):
        requests = {"ephemeral-storage": str(scratch_bytes), **resources.get("requests", {})}
        resources = {**resources, "requests": requests}
    container = pods.container(
        job,
        settings,
        command=["python", "-m", "finetune_trainer.agent"],
        env=[
            *_common_env(job.owner),
            from_field(Env.NODE_INDEX, f"metadata.annotations['{INDEX_ANNOTATION}']"),
            from_field(Env.ADVERTISE_HOST, "status.podIP"),
            from_secret(Env.TOKEN, secret_name(job.owner, settings), TOKEN_KEY),
            variable(Env.ATTEMPT, str(attempt)),
            variable(Env.AGENT_PORT, str(AGENT_PORT)),
            variable(Env.THREADS, str(threads(job))),
        ],
        resources=resources,
    )
    container["ports"] = [{"name": "agent", "containerPort": AGENT_PORT}]
    # A pod is ready while the leader answers the beats of its agent.
    container["readinessProbe"] = {
        "httpGet": {"path": "/healthz", "port": "agent"},
        "periodSeconds": 3,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }
    return container


def _stage_job(
    job: AcceptedJob, settings: Settings, stage: Stage, resources: Object, inputs: PodInputs, attempt: int = 0
) -> Object:
    """Build the Job of a CPU stage; 0 = its name has no attempt."""
    labels = {**_labels(job.owner), Label.STAGE.value: stage.value}
    if attempt:
        labels[Label.ATTEMPT.value] = str(attempt)
    command = ["python", "-m", f"finetune_trainer.{stage}"]
    env = [*_common_env(job.owner), *inputs.env]
    container = pods.container(job, settings, command=command, env=env, resources=resources, mounts=inputs.mounts)
    template = pods.pod_spec(
        job,
        settings,
        container,
        grace_seconds=STAGE_GRACE_SECONDS,
        placement=pods.stage_placement(job, stage),
        scratch=pods.small_scratch(),
        volumes=inputs.volumes,
    )
    if inputs.sidecars:
        template["initContainers"] = list(inputs.sidecars)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**_metadata(job.owner, stage_job_name(job.owner, stage, attempt)), "labels": labels},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": _pod_template(job, template, labels),
        },
    }


def _failure_rules() -> list[Object]:
    """Fail the Job at once for exit codes that no retry cures; ignore announced stops and disruptions."""
    return [
        _on_exit_codes("FailJob", [code.value for code in VERDICTS]),
        _on_exit_codes("Ignore", [ExitCode.DRAINED.value]),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _on_exit_codes(action: str, codes: list[int]) -> Object:
    return {
        "action": action,
        "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": sorted(codes)},
    }


def _pod_template(job: AcceptedJob, spec: Object, labels: dict[str, str]) -> Object:
    """Return a pod template with our labels, and with the FineTuneJob as an annotation that the pod mounts."""
    added, owner = job.spec.pod_template, job.owner
    written = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
        "spec": job.written,
    }
    return {
        "metadata": {
            "labels": {**(added.labels if added else {}), **labels},
            "annotations": {
                **(added.annotations if added else {}),
                JOB_ANNOTATION: json.dumps(written, separators=(",", ":")),
            },
        },
        "spec": spec,
    }


def _common_env(owner: Owner) -> list[Object]:
    return [
        variable(Env.JOB, PodPath.JOB.value),
        variable(Env.JOB_UID, owner.uid),
        variable(Env.WORK_DIR, PodPath.SCRATCH.value),
        variable(Env.TERMINATION_LOG, PodPath.TERMINATION_LOG.value),
        variable("HOME", PodPath.TMP.value),
        variable("PYTHONUNBUFFERED", "1"),
    ]


def _labels(owner: Owner) -> dict[str, str]:
    return {Label.MANAGED_BY.value: MANAGER, Label.JOB.value: owner.name, Label.UID.value: owner.uid}


def _metadata(owner: Owner, name: str) -> Object:
    return {
        "name": name,
        "namespace": owner.namespace,
        "ownerReferences": [
            {"apiVersion": API_VERSION, "kind": KIND, "name": owner.name, "uid": owner.uid, "controller": True}
        ],
    }
