"""From a FineTuneJob to the objects that carry it out: a Job per stage (and attempt), and the Secret with the gang's
token. Pure. What is made here is created once and never applied again: a queue may own fields of a Job afterwards."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

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
from finetune_api.v1alpha1 import FineTuneJob
from finetune_operator.objects import pods
from finetune_operator.objects.inputs import Inputs, inputs
from finetune_operator.objects.machines import Gpu
from finetune_operator.settings import Settings

Object = dict[str, Any]

# Budgets are kept by leader and operator: the Job itself never gives up on an index.
UNLIMITED = 2_147_483_647
STAGE_RETRIES = 3  # of prepare for any fault, of export for its own faults: outages of storage are retried for ever
EXPORT_RESOURCES = {"requests": {"cpu": "1", "memory": "4Gi"}}
# Two processes tokenise within 1.5 GiB, whatever the size of the data; the limit is for what nobody foresaw.
PREPARE_RESOURCES = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
TOKEN_KEY = "token"
GONE = ""


@dataclass(frozen=True)
class Owner:
    """The FineTuneJob that children belong to.

    Attributes:
        uid: GONE if the object is not there any more, but pods of it are.
        spec: as the user wrote it: it travels to the pods unchanged.
    """

    name: str
    namespace: str
    uid: str
    spec: Object

    @property
    def selector(self) -> str:
        """Label selector of all children."""
        return f"{Label.UID}={self.uid}"


def token(key: bytes, uid: str) -> str:
    """The bearer token of a job's gang; the operator need not remember it, nor read a Secret."""
    return hmac.new(key, uid.encode(), "sha256").hexdigest()


def token_secret(owner: Owner, settings: Settings) -> Object:
    """The Secret that hands the token to the training pods."""
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


def prepare_job(owner: Owner, job: FineTuneJob, settings: Settings, gpu: Gpu | None = None) -> Object:
    """The Job that checks data and model, and plans.

    Args:
        gpu: what training may count on, if nodes told.
    """
    asked = job.spec.prepare.resources if job.spec.prepare else None
    resources = pods.requirements(asked) if asked else PREPARE_RESOURCES
    made = _stage_job(owner, job, settings, Stage.PREPARE, resources, inputs(job, settings, resources, gpu))
    made["spec"]["backoffLimit"] = STAGE_RETRIES
    return made


def export_job(owner: Owner, job: FineTuneJob, settings: Settings, attempt: int = 1) -> Object:
    """The Job that makes artifacts of the best checkpoint.

    The Job controller retries it for ever, with growing delays: no outage of storage may strand a finished training.
    `decide` counts the failures that are the export's own.
    """
    asked = job.spec.export.resources
    resources = pods.requirements(asked) if asked else EXPORT_RESOURCES
    number = attempt if attempt > 1 else 0  # the first has no number
    made = _stage_job(owner, job, settings, Stage.EXPORT, resources, Inputs(), number)
    made["spec"]["backoffLimit"] = UNLIMITED
    return made


def train_job(
    owner: Owner, job: FineTuneJob, settings: Settings, attempt: int, *, grace_seconds: int, scratch_bytes: int
) -> Object:
    """The Indexed Job of one attempt: `nodes` pods and the spares.

    Args:
        grace_seconds: what a pod gets to save and upload when it is told to stop.
        scratch_bytes: node-local space of a pod, where the user names none.
    """
    spec = job.spec
    labels = {**_labels(owner), Label.STAGE: Stage.TRAIN.value, Label.ATTEMPT: str(attempt)}
    size = int(parse_quantity(spec.scratch.size)) if spec.scratch and spec.scratch.size else scratch_bytes
    resources = pods.requirements(spec.resources_per_node)
    if not (spec.scratch and (spec.scratch.storage_class_name or spec.scratch.medium == "Memory")):
        resources = {**resources, "requests": {"ephemeral-storage": str(size), **resources.get("requests", {})}}
    container = pods.container(
        job,
        settings,
        command=["python", "-m", "finetune_trainer.agent"],
        env=[
            *_common_env(owner),
            pods.from_field(Env.NODE_INDEX, "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
            pods.from_field(Env.ADVERTISE_HOST, "status.podIP"),
            pods.from_secret(Env.TOKEN, secret_name(owner, settings), TOKEN_KEY),
            {"name": Env.ATTEMPT.value, "value": str(attempt)},
            {"name": Env.AGENT_PORT.value, "value": str(AGENT_PORT)},
            {"name": Env.THREADS.value, "value": str(pods.threads(job))},
        ],
        resources=resources,
    )
    container["ports"] = [{"name": "agent", "containerPort": AGENT_PORT}]
    # ready = this agent's beats are answered
    container["readinessProbe"] = {
        "httpGet": {"path": "/healthz", "port": "agent"},
        "periodSeconds": 3,
        "timeoutSeconds": 2,
        "failureThreshold": 2,
    }
    template = pods.template(Stage.TRAIN, job, settings, container, grace_seconds=grace_seconds, scratch_bytes=size)
    template["spec"]["affinity"] = pods.affinity(job, owner.uid)
    template["spec"]["tolerations"] = pods.tolerations(job, settings.node_toleration_seconds)
    if spec.priority_class_name:
        template["spec"]["priorityClassName"] = spec.priority_class_name
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
            "podReplacementPolicy": "Failed",  # never two pods of one index
            "podFailurePolicy": {"rules": _failure_rules()},
            # The leader leaves last: once it has exited 0, all is done, whether or not a spare was ever scheduled.
            "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
            "template": _owned(template, owner, job, labels),
        },
    }


def secret_name(owner: Owner, settings: Settings) -> str:
    """Name of the Secret with the token; another key of the operator makes another Secret, for the next attempt."""
    digest = hashlib.sha256(token(settings.token_key, owner.uid).encode()).hexdigest()
    return f"{owner.name}-token-{digest[:8]}"


def stage_job_name(owner: Owner, stage: Stage, attempt: int = 0) -> str:
    """Name of a stage's Job."""
    return f"{owner.name}-{stage}-{attempt}" if attempt else f"{owner.name}-{stage}"


def _stage_job(
    owner: Owner,
    job: FineTuneJob,
    settings: Settings,
    stage: Stage,
    resources: Object,
    given: Inputs,
    attempt: int = 0,
) -> Object:
    labels = {**_labels(owner), Label.STAGE.value: stage.value}
    if attempt:
        labels[Label.ATTEMPT.value] = str(attempt)
    command = ["python", "-m", f"finetune_trainer.{stage}"]
    env = [*_common_env(owner), *given.env]
    container = pods.container(job, settings, command=command, env=env, resources=resources, mounts=given.mounts)
    template = pods.template(
        stage, job, settings, container, grace_seconds=30, scratch_bytes=None, volumes=given.volumes
    )
    template["spec"].update(pods.placement(job, job.spec.prepare if stage is Stage.PREPARE else job.spec.export))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**_metadata(owner, stage_job_name(owner, stage, attempt)), "labels": labels},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": _owned(template, owner, job, labels),
        },
    }


def _failure_rules() -> list[Object]:
    """Our verdicts fail the Job at once; an announced stop and a disruption are no failure."""
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


def _owned(template: Object, owner: Owner, job: FineTuneJob, labels: dict[str, str]) -> Object:
    """A pod template with our labels, and the job as a file for the pod."""
    added = job.spec.pod_template
    written = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
        "spec": owner.spec,
    }
    return {
        "metadata": {
            "labels": {**(added.labels if added else {}), **labels},
            "annotations": {
                **(added.annotations if added else {}),
                JOB_ANNOTATION: json.dumps(written, separators=(",", ":")),
            },
        },
        **template,
    }


def _common_env(owner: Owner) -> list[Object]:
    return [
        {"name": Env.JOB.value, "value": PodPath.JOB.value},
        {"name": Env.JOB_UID.value, "value": owner.uid},
        {"name": Env.WORK_DIR.value, "value": PodPath.SCRATCH.value},
        {"name": Env.TERMINATION_LOG.value, "value": PodPath.TERMINATION_LOG.value},
        {"name": "HOME", "value": PodPath.TMP.value},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
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
