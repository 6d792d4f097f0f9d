"""What a stage leaves behind: the termination message of its pod, all that the operator learns of the inside."""

from finetune_api.beats import Progress
from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Artifact, DatasetFacts, Message, MethodType, Stage, Task


class PlanSummary(Message):
    """The part of plan.json that goes on the object.

    Attributes:
        size_bytes: bytes of the base model's weight files.
        checkpoint_bytes: expected bytes of one checkpoint's largest node share.
        grace_seconds: what a pod needs to save and upload when it is told to stop.
        scratch_bytes: node-local space for model, data and two checkpoints.
        estimated_hours: predicted wall time with steps; gpu_hours and cost None without GPUs or price.
        bytes_per_gpu: predicted peak of one GPU, or of one rank without GPUs; `memory` says what for.
        choices: a sentence for each value that a rule chose; the first to go where bytes are short.
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
        """Ranks in all."""
        return self.nodes * self.processes_per_node


class StageResult(Message):
    """What a stage leaves behind when it ends (a pod's termination message: at most 4,096 bytes).

    Attributes:
        plan, dataset: of prepare.
        warnings: of prepare: what the quality report warns of, a sentence each, the weightiest first.
        progress: of training, from the leader only: the run as it stood when its pod ended.
        artifacts: of export.
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
    note: str = ""
