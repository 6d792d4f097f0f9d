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

CONTAINER = "trainer"  # in every pod of a job; a mesh or an admission webhook may add others

AGENT_PORT = 29400  # server of each agent in its pod: /healthz on all nodes, beats and /progress on the leader


class Label(StrEnum):
    """Labels of every object that the operator creates. It lists objects by these labels."""

    MANAGED_BY = "app.kubernetes.io/managed-by"
    JOB = "finetune.dev/job-name"
    UID = "finetune.dev/job-uid"
    STAGE = "finetune.dev/stage"
    ATTEMPT = "finetune.dev/attempt"


PROGRESS_HEADER = {"Finetune-Progress": "2"}  # in a request of /progress: the client skips unknown fields
MANAGER = "finetune-operator"  # value of Label.MANAGED_BY, and the field manager of every write
PROGRESS_TOKEN_ANNOTATION = "finetune.dev/progress-token"  # on train Jobs whose agents know `progress_token`
JOB_ANNOTATION = "finetune.dev/job"  # the FineTuneJob for this stage; the downward API mounts it as a file


class PodPath(StrEnum):
    """Paths in every pod of a job. All other paths are read-only."""

    JOB = "/etc/finetune/job.json"
    CA = "/etc/finetune-ca/ca.crt"
    SIGNING_KEY = "/etc/finetune-signing/key.pem"  # in the export pod only: spec.export.signing
    SERVE = "/serve"  # in the export pod only: orders to the container of spec.export.serveTest.image
    SUITES = "/suites"  # in the export pod only: orders to the containers of spec.evaluation.suites, and their results
    DATA_CA = "/etc/finetune-data-ca/ca.crt"  # in the prepare pod only, like all settings of dataset.storage
    MODEL_VOLUME = "/volumes/model"  # in the prepare pod only: model.persistentVolumeClaim
    SCRATCH = "/scratch"
    TMP = "/tmp"  # also HOME and caches
    SHM = "/dev/shm"
    TERMINATION_LOG = "/dev/termination-log"


class Env(StrEnum):
    """Environment variables that configure the programs. Messages carry everything else."""

    JOB = "FINETUNE_JOB"  # path of the job, JSON or YAML
    JOB_UID = "FINETUNE_JOB_UID"  # identity of the run: the uid of the object, or one that a local run makes
    NODE_INDEX = "FINETUNE_NODE_INDEX"  # completion index of the pod, 0 is the leader
    TOKEN = "FINETUNE_TOKEN"  # bearer token of the gang
    ATTEMPT = "FINETUNE_ATTEMPT"  # number of the train Job; the token for /progress is derived from it
    WORK_DIR = "FINETUNE_WORK_DIR"  # node-local scratch
    AGENT_PORT = "FINETUNE_AGENT_PORT"  # port of the leader's server; 0 = any free one
    THREADS = "FINETUNE_THREADS"  # intra-op threads of each worker; 0 = cores / workers
    PARENT_PID = "FINETUNE_PARENT_PID"  # the process ends when this one does (local runs)
    LOCAL = "FINETUNE_LOCAL"  # set for a local run: the plan inspects this machine
    ADVERTISE_HOST = "FINETUNE_ADVERTISE_HOST"  # address under which other nodes reach this agent
    GPU_PRODUCT = "FINETUNE_GPU_PRODUCT"  # GPU model of the nodes that the job may use, from their labels
    GPU_MEMORY_MIB = "FINETUNE_GPU_MEMORY_MIB"  # memory of one GPU, the smallest of those nodes
    MODEL_VOLUME = "FINETUNE_MODEL_VOLUME"  # folder where the claim of model.persistentVolumeClaim is mounted
    PROCESSES = "FINETUNE_PROCESSES"  # processes of the prepare stage; unset = one per core
    SIGNING_KEY = "FINETUNE_SIGNING_KEY"  # path of the private key that signs artifacts
    VLLM = "FINETUNE_VLLM"  # path of `vllm`, or of a Python that has it: the export stage tests artifacts with it
    LLAMA_SERVER = "FINETUNE_LLAMA_SERVER"  # path of llama.cpp's `llama-server`, for the form gguf
    SERVE_FOLDER = "FINETUNE_SERVE_FOLDER"  # folder shared with the container that serves, instead of programs here
    SERVE_OBSTACLE = "FINETUNE_SERVE_OBSTACLE"  # why that container did not start: no artifact is tested on a server
    SUITES_FOLDER = "FINETUNE_SUITES_FOLDER"  # has a folder for each suite with a container, which shares it
    TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"  # where a stage leaves its StageResult
    STORAGE_ENDPOINT = "AWS_ENDPOINT_URL_S3"
    STORAGE_REGION = "AWS_REGION"
    STORAGE_CA = "AWS_CA_BUNDLE"
    # for the data set, if its endpoint or keys differ from those of the storage (spec.dataset.storage)
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
    """Exit codes of our processes. 64 to 79 are defined here; 143 is an announced stop."""

    OK = 0
    UNKNOWN = 1
    USER_ERROR = 64
    DATA_ERROR = 65
    NOT_REPRODUCED = 66  # of `finetune reproduce` alone: the training was repeated, and the weights are others
    STORAGE_ERROR = 69
    DISTRIBUTED = 70  # a peer was lost; the process that failed first has another code
    OUT_OF_MEMORY = 77
    DIVERGED = 78
    GANG_FAILED = 79  # the leader gives up: no restart is left, or a restart would not help
    DRAINED = 143


class File(StrEnum):
    """File and object names."""

    MANIFEST = "MANIFEST.json"  # written last: it commits all files beside and below it
    PART = "PART.json"  # the part of one node in a checkpoint: files with size and sha256
    SPEC = "spec.json"
    PLAN = "plan.json"
    GENERATION = "generation.json"  # current generation of the gang, and address of the leader
    DONE = "DONE.json"
    DATASET_REPORT = "dataset-report.json"
    DATASET_PAGE = "dataset-report.html"
    JUDGEMENT = "judgement.json"  # of the exported model: below the run, and in each artifact
    RUN_REPORT = "report.html"
    PUSHES = "pushes.json"  # which copies of artifacts other places have
    LABELS = "labels.json"
    EVAL_GROUPS = "eval-groups.json"  # which rows of the eval split mention which groups of people
    SHARDS = "shards.json"  # rows, tokens and digest of each file of a prepared data set
    OUTPUTS = "outputs"  # prefix for TensorBoard events, generated samples and tables


class PushVariable(StrEnum):
    """What an item of spec.export.push adds to the environment of the export pod, beside the names of CREDENTIALS."""

    TOKEN = "TOKEN"  # of the hub
    DOCKER_CONFIG = "DOCKER_CONFIG"  # path of the logins to a registry
    CA = "CA_BUNDLE"  # path of a file


def push_variable(index: int, name: str) -> str:
    """Return the environment variable of an item of spec.export.push."""
    return f"FINETUNE_PUSH_{index}_{name}"


def push_folder(index: int, name: str) -> str:
    """Return the folder in the export pod with a file of a Secret that an item of spec.export.push names."""
    return f"/etc/finetune-push-{index}-{name}"


def suite_variable(name: str) -> str:
    """Return the environment variable that names a program of this machine in place of a suite's container."""
    return f"FINETUNE_SUITE_{name.upper().replace('-', '_')}"


def progress_token(token: str, attempt: str) -> str:
    """Return the token for GET /progress in one attempt, derived from the token of the gang.

    The operator sends it to the address of the leader's pod. A stranger at that address can do nothing else with it.
    """
    return hmac.new(token.encode(), f"progress/{attempt}".encode(), "sha256").hexdigest()


def dataset_prefix(sha256: str) -> str:
    """Return the key prefix of a prepared data set, with a trailing slash."""
    return f"datasets/{sha256}/"


def model_prefix(name: str, commit: str) -> str:
    """Return the key prefix of a mirrored model; `name` may have slashes, as names on the hub do."""
    return f"models/{name}/{commit}/"


def adapter_prefix(commit: str) -> str:
    """Return the key prefix of a mirrored adapter from which training starts."""
    return f"adapters/{commit}/"


def probe_key(digest: str) -> str:
    """Return the key of the answer of a probe of an architecture."""
    return f"probes/{digest}.json"


def run_prefix(namespace: str, name: str, uid: str) -> str:
    """Return the key prefix of all objects of a run."""
    return f"jobs/{namespace}/{name}/{uid}/"


def checkpoint_name(step: int, generation: int | None = None) -> str:
    """Return the name of the checkpoint that a generation saved at a step. Names sort in the order of steps.

    Without a generation, the name is that of the step. Older versions named the folders of checkpoints so.
    """
    step_name = f"step-{step:08d}"
    return step_name if generation is None else f"{step_name}-g{generation}"


def checkpoint_of(name: str) -> tuple[int, int | None] | None:
    """Return the step and the generation in the name of a checkpoint; None for another name."""
    match = re.fullmatch(r"step-(\d{8})(?:-g(\d+))?", name, re.ASCII)
    return (int(match[1]), int(match[2]) if match[2] else None) if match else None


def checkpoint_step(name: str) -> int | None:
    """Return the step in the name of a checkpoint; None for another name."""
    checkpoint = checkpoint_of(name)
    return checkpoint[0] if checkpoint else None
