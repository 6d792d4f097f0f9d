"""What one node would tell the leader now: the value that heart, uploader and agent share."""

from dataclasses import dataclass, field

from finetune_api.beats import AgentState, EvalMetrics, Saved, StepMetrics


@dataclass
class NodeState:
    """One node, as its agent knows it.

    Attributes:
        complete: shares on the local disk, as they were looked at last.
        best: the best of them by its evaluation, while storage lacks it.
        upload_error, fetch_error: what storage said last; empty once it works.
    """

    state: AgentState = AgentState.BOOT
    generation: int = 0
    node_rank: int | None = None
    complete: tuple[Saved, ...] = ()
    best: Saved | None = None
    uploaded: list[Saved] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    evals: list[EvalMetrics] = field(default_factory=list)
    suspects: tuple[Saved, ...] = ()
    draining: bool = False
    upload_error: str = ""
    fetch_error: str = ""
    unfit: str = ""

    @property
    def storage_error(self) -> str:
        """What storage refuses, a sentence; empty when it works."""
        return self.fetch_error or self.upload_error
