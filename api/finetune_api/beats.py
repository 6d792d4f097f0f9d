"""JSON between the agents of a gang: a member's beat, the leader's directive, and the progress that the leader shows.

The protocol is a long poll: an agent POSTs its beat to the leader, which answers when its directive differs from the
one the agent has, else after about a second. Generations only grow; an agent ignores a directive of an older one.
"""

from enum import StrEnum

from pydantic import Field

from finetune_api.errors import FailureCategory
from finetune_api.messages import Message


class AgentState(StrEnum):
    BOOT = "boot"  # warming the zygote, fetching model and data
    READY = "ready"  # no workers, could start some
    RUNNING = "running"  # has workers of the generation it reports
    ENDED = "ended"  # its workers of that generation have all exited, by themselves


class RankState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    FINISHED = "finished"  # exit 0
    DRAINED = "drained"  # exit 143: saved and stopped because it was told to
    FAILED = "failed"


class RankReport(Message):
    """One worker, as its agent sees it.

    Attributes:
        phase: what the worker says it does: load, train, eval, save.
        exit_code: set when it has exited; -9 means killed by signal 9.
        ended_at: wall-clock seconds on its node when the exit was seen.
        error: the exception's first line, where the worker could still tell.
        log_tail: the last lines of its log, when it failed.
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
    checkpoints, whose shares never mix. The later of two is the one with more steps, then of the later generation."""

    step: int
    generation: int

    def __lt__(self, other: "CheckpointId") -> bool:
        return (self.step, self.generation) < (other.step, other.generation)

    def __str__(self) -> str:
        return f"{self.step} of generation {self.generation}"


class PartId(Message):
    """One node's share of a checkpoint; a share fits one node rank."""

    step: int
    generation: int
    node_rank: int

    @property
    def checkpoint(self) -> CheckpointId:
        """What it is a share of."""
        return CheckpointId(step=self.step, generation=self.generation)


class StepMetrics(Message):
    """What rank 0 measured at a step; the gang's reported loss is the mean over ranks.

    Attributes:
        tokens: non-padding tokens of the global batch of this step.
        seconds: duration of the step on rank 0, without evaluation and saving.
        data_wait: of these, seconds that it waited for data.
        memory_bytes: peak so far, of rank 0: what tensors took of the GPU's memory; without GPU, resident memory.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0
    memory_bytes: int = 0


class EvalMetrics(Message):
    """The metrics of one evaluation, such as eval_loss. `overfitting_since`: the step at which the run turned, if it
    overfits by now."""

    step: int
    values: dict[str, float]
    overfitting_since: int | None = None


class Beat(Message):
    """What an agent tells the leader.

    Attributes:
        node: index of the pod.
        incarnation: differs for every start of the agent, so that a replaced pod is seen.
        host: address under which the other nodes reach this one.
        port: one that is free on this node, if it could start workers: for the rendezvous, if it gets rank 0.
        generation: the highest generation it has heard of.
        complete: checkpoints complete on its local disk.
        best: the best of them by its evaluation, while storage lacks it.
        uploaded: checkpoints whose part of this node lies in storage.
        steps: metrics since the last beat that was answered, oldest first (from the node of rank 0).
        suspects: stored shares that did not verify on this node; the leader reads them itself before it believes that.
        draining: this pod was told to stop.
        storage_error: the sentence of the last upload or fetch that failed, empty when storage works.
        unfit: why this node can start no workers, in a sentence; it ends then.
        have: generation and action of the directive it obeys now.
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


class Action(StrEnum):
    HOLD = "hold"  # no workers: kill those of an older generation, report what you have
    FETCH = "fetch"  # no workers: bring this node rank's share of the checkpoint to the local disk
    RUN = "run"  # start the workers of this generation
    DRAIN = "drain"  # agree on a step, save, upload, stop
    DONE = "done"  # everything is trained and committed: exit 0
    STOPPED = "stopped"  # drained and committed: exit 143
    FAILED = "failed"  # no retry will help, or the budget is spent


class Directive(Message):
    """What every node of the gang obeys next.

    Attributes:
        ranks: node index -> node rank; a node that is not named is a spare.
        master_host, master_port: rendezvous of this generation; a port is never used twice in a row.
        resume: the checkpoint to start from, or to fetch; None = from the base model.
        reason: why, in a sentence, for logs and people.
        exit_code: for FAILED, the code every agent exits with.
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
        """What a beat carries as `have`: equal for two directives that ask for the same."""
        key = f"{self.generation}/{self.action}"
        if self.action is not Action.FETCH or self.resume is None:
            return key
        ranks = ",".join(f"{node}:{rank}" for node, rank in sorted(self.ranks.items()))
        return f"{key}/{self.resume.step}/{self.resume.generation}/{ranks}"


class Failure(Message):
    """Why a generation ended: the first culprit, not its victims."""

    category: FailureCategory
    node: int
    rank: int | None = None
    exit_code: int | None = None
    message: str
    log_tail: str = ""


class Recovery(Message):
    """One move to a new generation.

    Attributes:
        generation: the first that was given out for it, which no other recovery has.
        time: when the failure was seen, ISO 8601 with a time zone.
        node: index of the pod at fault, if one is.
        rank: the first rank that failed, if one did.
        resumed_step: the checkpoint it went on from; None = the base model, or not started yet.
        lost_steps: steps that had run beyond it.
        seconds: from the failure to the next step; None until that step is made.
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


class RecoveryTotals(Message):
    """All recoveries of a run, also those no longer listed. `restarts`: those that counted, announced stops do not."""

    count: int = 0
    restarts: int = 0
    lost_steps: int = 0
    seconds: float = 0.0
    by_category: dict[FailureCategory, int] = Field(default_factory=dict)


class CheckpointFacts(Message):
    """A committed checkpoint, as people are told of it.

    Attributes:
        generation: of which it is; None where an older version tells, or where its folder in storage is named by the
            step alone: `contract.checkpoint_name` of both is the folder's name.
        saved: ISO 8601.
        metrics: its evaluation.
    """

    step: int
    generation: int | None = None
    saved: str
    size_bytes: int
    metrics: dict[str, float] = Field(default_factory=dict)
    best: bool = False


class Outage(Message):
    """Storage has refused for a while: nothing is lost, but what is saved stays on the nodes' disks.

    Attributes:
        since: ISO 8601.
        message: the last refusal, a sentence.
        last_commit: when the last checkpoint was committed, ISO 8601; None = there is none.
    """

    since: str
    message: str
    last_commit: str | None = None


class Progress(Message):
    """What the leader answers to GET /progress.

    Attributes:
        epoch: passes over the training rows so far.
        tokens_per_second: non-padding tokens trained per second of step time, all ranks.
        samples_per_second: rows trained per second of step time, all ranks.
        mfu: model FLOPs utilisation (PaLM paper, appendix B): share of the GPUs' peak; None if that is not known.
        data_wait: share of the recent steps' time that rank 0 waited for data.
        memory_bytes: peak of rank 0, as of StepMetrics.
        train_seconds: step time so far, without evaluation and saving.
        checkpoints: committed ones that are kept, ascending.
        checkpoint_count: checkpoints committed in all, also those deleted since.
        recoveries: the last of all attempts, oldest first.
        overfitting_since: the step with the lowest eval loss, if it has risen since while the training loss fell.
        stopped_early: why the run ended before its last step, in a sentence; empty where it did not.
        outage: set while uploads or commits have been refused for a while.
    """

    phase: str
    generation: int
    step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
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
    recovery_totals: RecoveryTotals = RecoveryTotals()
    overfitting_since: int | None = None
    stopped_early: str = ""
    failure: Failure | None = None
    note: str = ""
    outage: Outage | None = None


class Trained(Message):
    """Work that is safe: tokens and step time up to a committed step."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


class GenerationRecord(Message):
    """generation.json: who leads, the highest generation given out, and what a next leader must know of the past.

    Attributes:
        started: workers of this generation were started and none of its endings is recorded; a next leader that reads
            this has lost the leader before it in the middle of work.
        overfitting_since: as the last evaluation told it.
    """

    generation: int
    leader: str
    incarnation: str
    started: bool = False
    recoveries: tuple[Recovery, ...] = ()
    recovery_totals: RecoveryTotals = RecoveryTotals()
    checkpoint_count: int = 0
    trained: Trained = Trained()
    overfitting_since: int | None = None
