"""JSON between the agents of a gang: beats of the members, directives and progress of the leader.

The protocol is a long poll. An agent POSTs its beat to the leader. The leader answers when its directive differs from
that of the agent, or after about a second. Generations only grow; an agent ignores directives of older generations.
"""

from enum import StrEnum

from pydantic import Field

from finetune_api.energy import Energy, RunEnergy
from finetune_api.errors import FailureCategory
from finetune_api.messages import Message, is_empty, is_none


class AgentState(StrEnum):
    BOOT = "boot"  # starts the zygote, fetches model and data
    READY = "ready"  # has no workers and can start them
    RUNNING = "running"  # has workers of the generation it reports
    ENDED = "ended"  # all workers of that generation have exited by themselves


class RankState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"  # exit 0
    DRAINED = "drained"  # exit 143: saved a checkpoint and stopped on request
    FAILED = "failed"


class RankReport(Message):
    """The state of one worker, from its agent.

    Attributes:
        phase: what the worker does: load, train, eval or save.
        exit_code: set when it has exited; -9 means killed by signal 9.
        ended_at: wall-clock seconds on its node when the agent noticed the exit.
        error: first line of the exception; empty if the worker could not report it.
        log_tail: the last lines of its log if it failed.
    """

    rank: int
    state: RankState
    phase: str = "load"
    step: int = 0
    exit_code: int | None = None
    ended_at: float | None = None
    error: str = ""
    log_tail: str = ""


class CheckpointId(Message):
    """The identity of a checkpoint: the step, and the generation that saved it. The same step of two generations is two
    checkpoints, whose parts never mix. The later of two is the one with more steps, then of the later generation."""

    step: int
    generation: int

    def __lt__(self, other: "CheckpointId") -> bool:
        return (self.step, self.generation) < (other.step, other.generation)

    def __str__(self) -> str:
        return f"{self.step} of generation {self.generation}"


class PartId(Message):
    """The identity of a part: what one node has of a checkpoint. A part fits one node rank."""

    step: int
    generation: int
    node_rank: int

    @property
    def checkpoint(self) -> CheckpointId:
        """The checkpoint that this is a part of."""
        return CheckpointId(step=self.step, generation=self.generation)


class StepMetrics(Message):
    """What rank 0 measured at a step. The loss is the mean over all ranks.

    Attributes:
        tokens: non-padding tokens of the global batch of this step.
        seconds: duration of the step on rank 0, without evaluation and saving.
        data_wait: seconds of these in which rank 0 waited for data.
        memory_bytes: peak of rank 0 so far: memory of tensors on the GPU; without a GPU, resident memory.
        metrics: of the task, besides the loss, such as `rewards/margins` of preference tuning.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0
    memory_bytes: int = 0
    metrics: dict[str, float] = Field(default_factory=dict, exclude_if=is_empty)


class EvalMetrics(Message):
    """The metrics of one evaluation, such as eval_loss.

    Attributes:
        overfitting_since: step since which the run overfits; None = it does not.
    """

    step: int
    values: dict[str, float]
    overfitting_since: int | None = None


class Beat(Message):
    """The state of one agent, which it sends to the leader.

    Attributes:
        node: index of the pod.
        incarnation: differs for every start of the agent, so that the leader notices a replaced pod.
        host: address under which the other nodes reach this one.
        port: a free port of this node for the rendezvous, in case it gets rank 0; 0 if it cannot start workers.
        generation: the highest generation that the agent knows.
        complete: checkpoints complete on its local disk.
        best: the best of them by its evaluation, while storage lacks it.
        uploaded: checkpoints whose part of this node is in storage.
        steps: metrics since the last answered beat, oldest first; from the node of rank 0.
        suspects: stored parts that did not verify on this node; the leader reads them itself before it believes that.
        draining: Kubernetes has asked this pod to stop.
        storage_error: error of the last upload or fetch, in a sentence; empty if storage works.
        unfit: why this node cannot start workers, in a sentence; the agent then ends.
        have: generation and action of the current directive of the agent.
        energy: of this node since the start of its agent; None = not measured.
    """

    node: int
    incarnation: str
    host: str
    generation: int
    state: AgentState
    port: int = 0
    ranks: tuple[RankReport, ...] = ()
    complete: tuple[PartId, ...] = ()
    best: PartId | None = None
    uploaded: tuple[PartId, ...] = ()
    steps: tuple[StepMetrics, ...] = ()
    evals: tuple[EvalMetrics, ...] = ()
    suspects: tuple[PartId, ...] = ()
    draining: bool = False
    storage_error: str = ""
    unfit: str = ""
    have: str = ""
    energy: Energy | None = Field(default=None, exclude_if=is_none)


class GangPhase(StrEnum):
    """What a gang does now, as its leader reports it."""

    STARTING = "starting"  # nodes are missing, and the gang has not run yet
    RECOVERING = "recovering"  # a new generation is on its way
    LOAD = "load"  # workers load the model
    REFERENCE = "reference"  # workers compute the log-probabilities of a reference model
    TRAIN = "train"
    EVAL = "eval"
    SAVE = "save"
    FAILED = "failed"
    DONE = "done"
    UNKNOWN = "unknown"  # a phase that only another version knows

    @classmethod
    def _missing_(cls, value: object) -> "GangPhase | None":
        """Read the phase of another version as UNKNOWN; what is not text stays an error."""
        return cls.UNKNOWN if isinstance(value, str) else None


class Action(StrEnum):
    HOLD = "hold"  # no workers: kill those of an older generation, report complete checkpoints
    FETCH = "fetch"  # no workers: bring this node rank's part of the checkpoint to the local disk
    RUN = "run"  # start the workers of this generation
    DRAIN = "drain"  # agree on a step, save, upload, stop
    DONE = "done"  # everything is trained and committed: exit 0
    STOPPED = "stopped"  # drained and committed: exit 143
    FAILED = "failed"  # a restart would not help, or the budget is spent


class Directive(Message):
    """The next instruction for every node of the gang.

    Attributes:
        ranks: node index -> node rank; a node without a rank is a spare.
        master_host, master_port: rendezvous of this generation; a port is never used twice in a row.
        resume: the checkpoint to start from, or to fetch; None = from the base model.
        reason: the reason in a sentence, for logs and users.
        exit_code: for FAILED, the exit code of every agent.
    """

    generation: int
    action: Action
    ranks: dict[int, int] = Field(default_factory=dict)
    master_host: str = ""
    master_port: int = 0
    resume: CheckpointId | None = None
    reason: str = ""
    exit_code: int = 0

    @property
    def key(self) -> str:
        """Value of `have` in a beat; equal for two directives with the same instruction."""
        key = f"{self.generation}/{self.action}"
        if self.action is not Action.FETCH or self.resume is None:
            return key
        ranks = ",".join(f"{node}:{rank}" for node, rank in sorted(self.ranks.items()))
        return f"{key}/{self.resume.step}/{self.resume.generation}/{ranks}"


class Failure(Message):
    """Why a generation ended: the failure that came first, not its consequences."""

    category: FailureCategory
    node: int
    rank: int | None = None
    exit_code: int | None = None
    message: str
    log_tail: str = ""


class Recovery(Message):
    """One move to a new generation.

    Attributes:
        generation: the first generation of this recovery; no other recovery has it.
        time: when the leader noticed the failure, ISO 8601 with a time zone.
        node: index of the pod at fault; None = unknown.
        rank: the first rank that failed; None = no rank failed.
        resumed_step: step of the checkpoint from which it continued; None = the base model, or not started yet.
        lost_steps: steps that were made after that checkpoint.
        seconds: seconds from the failure to the next step; None until that step is made.
    """

    generation: int
    time: str
    reason: str
    category: FailureCategory = FailureCategory.UNKNOWN
    node: int | None = None
    rank: int | None = None
    resumed_step: int | None = None
    lost_steps: int = 0
    seconds: float | None = None


class RecoveryCounts(Message):
    """Totals over all recoveries of a run, including those that are no longer listed.

    Attributes:
        restarts: recoveries that count against the restart budget; announced stops do not.
    """

    count: int = 0
    restarts: int = 0
    lost_steps: int = 0
    seconds: float = 0.0
    by_category: dict[FailureCategory, int] = Field(default_factory=dict)


class CheckpointFacts(Message):
    """A committed checkpoint, for reports.

    Attributes:
        generation: generation that saved it; None from an older version, or if the name of its folder in storage holds
            the step alone. `contract.checkpoint_name` of step and generation is the name of the folder.
        saved: ISO 8601.
        metrics: metrics of its evaluation.
    """

    step: int
    generation: int | None = None
    saved: str
    size_bytes: int
    metrics: dict[str, float] = Field(default_factory=dict)
    best: bool = False


class Outage(Message):
    """A time in which storage refuses requests. Nothing is lost: checkpoints stay on the disks of the nodes.

    Attributes:
        since: ISO 8601.
        message: the last error of storage, a sentence.
        last_commit: when the last checkpoint was committed, ISO 8601; None = no checkpoint yet.
    """

    since: str
    message: str
    last_commit: str | None = None


class Progress(Message):
    """The answer of the leader to GET /progress.

    Attributes:
        epoch: passes over the training rows so far.
        tokens_per_second: non-padding tokens per second of step time, over all ranks.
        samples_per_second: rows per second of step time, over all ranks.
        mfu: model FLOPs utilisation (PaLM paper, appendix B): share of the peak of the GPUs; None = unknown.
        data_wait: share of the time of recent steps in which rank 0 waited for data.
        memory_bytes: peak of rank 0, as in StepMetrics.
        train_seconds: step time so far, without evaluation and saving.
        metrics: of the last step, as in StepMetrics.
        checkpoints: committed ones that are kept, ascending.
        checkpoint_count: number of checkpoints committed so far, including deleted ones.
        recoveries: the last recoveries over all attempts, oldest first.
        overfitting_since: step of the lowest eval loss, if it has risen since while the training loss has fallen.
        stopped_early: why the run ended before its last step, in a sentence; empty if it did not.
        outage: set while storage has refused uploads or commits for some time.
        energy: of all nodes while their agents ran, with loading, evaluation and waiting; None = not measured.
    """

    phase: GangPhase
    generation: int
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict, exclude_if=is_empty)
    evals: tuple[EvalMetrics, ...] = ()
    tokens: int = 0
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    samples_per_second: float = 0.0
    mfu: float | None = None
    data_wait: float = 0.0
    memory_bytes: int = 0
    eta_seconds: float | None = None
    checkpoints: tuple[CheckpointFacts, ...] = ()
    checkpoint_count: int = 0
    recoveries: tuple[Recovery, ...] = ()
    recovery_totals: RecoveryCounts = RecoveryCounts()
    overfitting_since: int | None = None
    stopped_early: str = ""
    failure: Failure | None = None
    note: str = ""
    outage: Outage | None = None
    energy: Energy | None = Field(default=None, exclude_if=is_none)


class Trained(Message):
    """Tokens and step time up to the last committed step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class GenerationRecord(Message):
    """generation.json: the address of the leader, the current generation, and history for the next leader.

    Attributes:
        started: whether workers of this generation were started and its end is not recorded. A new leader that reads
            True knows that the previous leader was lost during work.
        overfitting_since: value from the last evaluation.
        energy: of the run up to the last commit or failure; None = not measured.
    """

    generation: int
    leader: str
    incarnation: str
    started: bool = False
    recoveries: tuple[Recovery, ...] = ()
    recovery_totals: RecoveryCounts = RecoveryCounts()
    checkpoint_count: int = 0
    trained: Trained = Trained()
    overfitting_since: int | None = None
    energy: RunEnergy | None = Field(default=None, exclude_if=is_none)
