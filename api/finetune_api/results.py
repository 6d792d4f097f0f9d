"""Results of the stages. A pod writes one into its termination message, from which the operator reads it."""

from pydantic import Field

from finetune_api.beats import Progress
from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Artifact, DatasetFacts, Message, MethodType, Stage, Task, is_empty, is_none


class PlanSummary(Message):
    """The part of plan.json that the status shows.

    Attributes:
        size_bytes: bytes of the weight files of the base model.
        checkpoint_bytes: expected bytes of the largest part of a checkpoint.
        grace_seconds: seconds that a pod needs to save and upload a checkpoint when Kubernetes stops it.
        scratch_bytes: bytes of node-local space for model, data and two checkpoints.
        estimated_hours: predicted wall time of the steps.
        estimated_gpu_hours: the same in GPU hours; None without GPUs.
        estimated_cost: None without a price.
        bytes_per_gpu: predicted peak memory of a GPU, or of a rank without GPUs.
        memory: what that memory holds, in a sentence.
        choices: a sentence for each value that a rule chose. They are left out first if the message is too long.
    """

    task: Task
    method: MethodType
    model: str
    commit: str
    parameters: int
    size_bytes: int
    nodes: int
    processes_per_node: int
    zero_stage: int
    micro_batch: int
    gradient_accumulation: int
    global_batch: int
    max_steps: int
    learning_rate: float
    checkpoint_every_steps: int
    checkpoint_bytes: int
    grace_seconds: int
    scratch_bytes: int
    estimated_hours: float | None = None
    estimated_gpu_hours: float | None = None
    estimated_cost: str | None = None
    bytes_per_gpu: int | None = None
    memory: str = ""
    choices: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        """Number of ranks on all nodes."""
        return self.nodes * self.processes_per_node


class Approval(Message):
    """What the gates of a job say about the exported model.

    Attributes:
        message: names the gates with values and intervals, those that failed first.
        judged: False if the model could not be judged; the message has the reason.
    """

    approved: bool
    message: str
    judged: bool = True


class ServeOutcome(Message):
    """Whether the exported model answers on a server as it does in transformers.

    Attributes:
        served: None if no artifact could be tested.
        reason: CamelCase: SameAnswers, OtherAnswers, EndsMissed, ServerFailed, NotServable or NotTested.
        message: what was seen of each artifact.
    """

    served: bool | None = None
    reason: str
    message: str


class SuiteOutcome(Message):
    """The values of one suite of `spec.evaluation.suites`.

    Attributes:
        values: `TASK.METRIC` -> value; not all of a suite with many.
        problem: why it has no values; empty if it has.
    """

    name: str
    values: dict[str, float] = Field(default_factory=dict)
    problem: str = ""


class StageResult(Message):
    """The result of a stage: the termination message of its pod, at most 4,096 bytes.

    Attributes:
        plan, dataset: from prepare.
        warnings: from prepare: warnings of the quality report, each a sentence, the most important first.
        progress: from the leader of training: the progress when its pod ended.
        artifacts: from export.
        approval: from export, if the job has gates.
        serving: from export, if the job tests the artifacts on a server.
        suites: from export, if the job has suites.
    """

    stage: Stage
    succeeded: bool
    category: FailureCategory | None = None
    problems: tuple[Problem, ...] = ()
    dataset: DatasetFacts | None = None
    plan: PlanSummary | None = None
    warnings: tuple[str, ...] = ()
    progress: Progress | None = None
    artifacts: tuple[Artifact, ...] = ()
    approval: Approval | None = Field(default=None, exclude_if=is_none)
    serving: ServeOutcome | None = Field(default=None, exclude_if=is_none)
    suites: tuple[SuiteOutcome, ...] = Field(default=(), exclude_if=is_empty)
    note: str = ""
