"""Names that both sides share: API identity, environment variables, object keys, file names, exit codes."""

import hmac
import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"

# Fields of the spec that may change while a run goes on: they make no other model. (`nodes` and `spares` may too, on a
# cluster, while the job is suspended.)
MUTABLE_FIELDS = frozenset({"suspend", "dryRun", "recovery", "budget", "export", "ttlSecondsAfterFinished"})

CONTAINER = "trainer"  # in every pod of ours; a mesh or an admission webhook may add others

AGENT_PORT = 29400  # of every agent's server, in a pod: /healthz on all, beats and /progress on the leader's


class Label(StrEnum):
    """Labels of everything the operator makes; it lists by them, so that the server selects."""

    MANAGED_BY = "app.kubernetes.io/managed-by"
    JOB = "finetune.dev/job-name"
    UID = "finetune.dev/job-uid"
    STAGE = "finetune.dev/stage"
    ATTEMPT = "finetune.dev/attempt"


PROGRESS_HEADER = {"Finetune-Progress": "2"}  # of who asks for /progress: it skips fields that it does not know
MANAGER = "finetune-operator"  # value of Label.MANAGED_BY, and the field manager of every write
PROGRESS_TOKEN_ANNOTATION = "finetune.dev/progress-token"  # on train Jobs whose agents know `progress_token`
JOB_ANNOTATION = "finetune.dev/job"  # the FineTuneJob as this stage sees it; mounted as a file by the downward API


class PodPath(StrEnum):
    """Where things lie in every pod of ours; everything else is read-only."""

    JOB = "/etc/finetune/job.json"
    CA = "/etc/finetune-ca/ca.crt"
    DATA_CA = "/etc/finetune-data-ca/ca.crt"  # of prepare only, as everything of dataset.storage
    MODEL_VOLUME = "/volumes/model"  # of prepare only: model.persistentVolumeClaim
    SCRATCH = "/scratch"
    TMP = "/tmp"  # also HOME and caches
    SHM = "/dev/shm"
    TERMINATION_LOG = "/dev/termination-log"


class Env(StrEnum):
    """Environment variables that configure the parts; everything else travels in messages."""

    JOB = "FINETUNE_JOB"  # path of the job, JSON or YAML
    JOB_UID = "FINETUNE_JOB_UID"  # identity of the run: the object's uid, or one made by local mode
    NODE_INDEX = "FINETUNE_NODE_INDEX"  # completion index of the pod, 0 is the leader
    TOKEN = "FINETUNE_TOKEN"  # bearer token of the gang
    ATTEMPT = "FINETUNE_ATTEMPT"  # number of the train Job: what the token for /progress is derived with
    WORK_DIR = "FINETUNE_WORK_DIR"  # node-local scratch
    AGENT_PORT = "FINETUNE_AGENT_PORT"  # port of the leader's server; 0 = any free one
    THREADS = "FINETUNE_THREADS"  # intra-op threads of each worker; 0 = cores / workers
    PARENT_PID = "FINETUNE_PARENT_PID"  # die with this process (local mode)
    LOCAL = "FINETUNE_LOCAL"  # set where the job runs on this machine: the plan looks what it has
    ADVERTISE_HOST = "FINETUNE_ADVERTISE_HOST"  # address under which other nodes reach this agent
    GPU_PRODUCT = "FINETUNE_GPU_PRODUCT"  # of the nodes that the job may use, as their labels name it
    GPU_MEMORY_MIB = "FINETUNE_GPU_MEMORY_MIB"  # of one GPU, the smallest of those nodes
    MODEL_VOLUME = "FINETUNE_MODEL_VOLUME"  # folder where the claim of model.persistentVolumeClaim is mounted
    PROCESSES = "FINETUNE_PROCESSES"  # of prepare: how many work at once; unset = one per core
    TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"  # where a stage leaves its StageResult
    STORAGE_ENDPOINT = "AWS_ENDPOINT_URL_S3"
    STORAGE_REGION = "AWS_REGION"
    STORAGE_CA = "AWS_CA_BUNDLE"
    # of the data set, where it lies elsewhere or is read with other keys than the job's storage (spec.dataset.storage)
    DATA_ENDPOINT = "FINETUNE_DATA_ENDPOINT"
    DATA_REGION = "FINETUNE_DATA_REGION"
    DATA_ACCESS_KEY = "FINETUNE_DATA_ACCESS_KEY_ID"
    DATA_SECRET_KEY = "FINETUNE_DATA_SECRET_ACCESS_KEY"
    DATA_SESSION_TOKEN = "FINETUNE_DATA_SESSION_TOKEN"
    DATA_CA = "FINETUNE_DATA_CA_BUNDLE"  # path of a file


@dataclass(frozen=True)
class Credential:
    """One credential of object storage.

    Attributes:
        name: key in the user's Secret, and environment variable of the AWS SDK.
        data_variable: environment variable of the prepare pod for the credential of spec.dataset.storage.
        optional: whether the Secret may lack it.
    """

    name: str
    data_variable: Env
    optional: bool = False


ACCESS_KEY_ID = Credential("AWS_ACCESS_KEY_ID", Env.DATA_ACCESS_KEY)
SECRET_ACCESS_KEY = Credential("AWS_SECRET_ACCESS_KEY", Env.DATA_SECRET_KEY)
SESSION_TOKEN = Credential("AWS_SESSION_TOKEN", Env.DATA_SESSION_TOKEN, optional=True)
CREDENTIALS = (ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN)


class ExitCode(IntEnum):
    """How processes end. 64-79 are ours; 143 is an announced stop."""

    OK = 0
    UNKNOWN = 1
    USER_ERROR = 64
    DATA_ERROR = 65
    STORAGE_ERROR = 69
    DISTRIBUTED = 70  # a peer was lost: a victim's code, never the culprit's
    OUT_OF_MEMORY = 77
    DIVERGED = 78
    GANG_FAILED = 79  # the leader's verdict: no restart is left, or none would help
    DRAINED = 143


class File(StrEnum):
    """File and object names."""

    MANIFEST = "MANIFEST.json"  # written last: it is the commit of everything beside and below it
    PART = "PART.json"  # one node's part of a checkpoint: its files with size and sha256
    SPEC = "spec.json"
    PLAN = "plan.json"
    GENERATION = "generation.json"  # the gang's current generation and its leader's address
    DONE = "DONE.json"
    DATASET_REPORT = "dataset-report.json"
    DATASET_PAGE = "dataset-report.html"
    LABELS = "labels.json"
    EVAL_GROUPS = "eval-groups.json"  # which rows of the eval split mention which groups of people
    SHARDS = "shards.json"  # of a prepared data set: rows, tokens and digest of each of its files
    OUTPUTS = "outputs"  # prefix of what people look at beside checkpoints: TensorBoard's events, samples, tables


def progress_token(token: str, attempt: str) -> str:
    """The token that opens GET /progress in one attempt and nothing else, derived from the gang's own.

    The operator shows it to whatever has the address of a leader's pod; who gets such an address gains nothing by it.
    """
    return hmac.new(token.encode(), f"progress/{attempt}".encode(), "sha256").hexdigest()


def dataset_prefix(sha256: str) -> str:
    """Key prefix of a prepared data set, with the trailing slash."""
    return f"datasets/{sha256}/"


def model_prefix(name: str, commit: str) -> str:
    """Key prefix of a mirrored model; `name` may hold slashes, as hub names do."""
    return f"models/{name}/{commit}/"


def adapter_prefix(commit: str) -> str:
    """Key prefix of a mirrored adapter that training starts from."""
    return f"adapters/{commit}/"


def run_prefix(namespace: str, name: str, uid: str) -> str:
    """Key prefix of everything that belongs to one run."""
    return f"jobs/{namespace}/{name}/{uid}/"


def checkpoint_name(step: int, generation: int | None = None) -> str:
    """Name of the checkpoint that a generation saved at a step; names sort as steps do.

    Without a generation: the name of a step, as people see it; and of the folder of its checkpoint in storage and on
    disk until a checkpoint was identified by its generation too.
    """
    step_name = f"step-{step:08d}"
    return step_name if generation is None else f"{step_name}-g{generation}"


def checkpoint_of(name: str) -> tuple[int, int | None] | None:
    """The step and the generation of a checkpoint's name, or None if it is no such name."""
    found = re.fullmatch(r"step-(\d{8})(?:-g(\d+))?", name, re.ASCII)
    return (int(found[1]), int(found[2]) if found[2] else None) if found else None


def checkpoint_step(name: str) -> int | None:
    """The step of a checkpoint's name, or None if it is no such name."""
    found = checkpoint_of(name)
    return found[0] if found else None
