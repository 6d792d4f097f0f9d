"""The state of one node, which the classes of its agent share: each class writes the fields that are its own. Pure."""

from dataclasses import dataclass, field

from finetune_api.beats import Action, AgentState, Beat, Directive, EvalMetrics, PartId, RankReport, StepMetrics
from finetune_trainer.process.orders import OVERFITTING_SINCE, WorkerEvent

MOST_STEPS_A_BEAT = 500


@dataclass
class NodeState:
    """One node, as its agent knows it.

    Attributes:
        directive: the last one from the leader that is not of an older generation (written by the executor).
        state, generation, node_rank: what its workers do, and for which generation and rank (executor, fence).
        complete: parts on the local disk when it was read last (uploader).
        best: the best of them by its evaluation, while storage lacks it (uploader).
        uploaded: parts that this agent has uploaded or fetched (uploader, fetcher).
        steps, evals: metrics that the leader has not acknowledged yet (events of rank 0).
        suspects: stored parts that did not verify here (fetcher).
        draining: this node was asked to stop.
        upload_error, fetch_error: the last error of storage; empty once it works.
        unfit: why this node cannot start workers.
    """

    directive: Directive | None = None
    state: AgentState = AgentState.BOOT
    generation: int = 0
    node_rank: int | None = None
    complete: tuple[PartId, ...] = ()
    best: PartId | None = None
    uploaded: list[PartId] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    evals: list[EvalMetrics] = field(default_factory=list)
    suspects: tuple[PartId, ...] = ()
    draining: bool = False
    upload_error: str = ""
    fetch_error: str = ""
    unfit: str = ""

    @property
    def storage_error(self) -> str:
        """The last error of storage, a sentence; empty when it works."""
        return self.fetch_error or self.upload_error

    def uploads_as(self, node: int) -> int | None:
        """Return the node rank whose parts a node uploads now; None if the rendezvous does not name the node."""
        if self.directive is None or self.directive.action is Action.FETCH:
            return None
        return self.directive.ranks.get(node)

    def record(self, event: WorkerEvent) -> None:
        """Keep the metrics of an event of rank 0 for the next beat."""
        if event.rank != 0:
            return
        if event.event == "step":
            self.steps.append(step_metrics(event))
            del self.steps[:-MOST_STEPS_A_BEAT]
        elif event.event == "eval":
            self.evals.append(eval_metrics(event))

    def acknowledge(self, beat: Beat) -> None:
        """Drop the metrics of a beat that the leader has answered."""
        del self.steps[: len(beat.steps)]
        del self.evals[: len(beat.evals)]

    def beat(self, node: int, incarnation: str, host: str, port: int, ranks: tuple[RankReport, ...]) -> Beat:
        """Return the beat that reports this state.

        Args:
            port: a free port, if this node could start workers; else 0.
            ranks: the workers of the current generation.
        """
        return Beat(
            node=node,
            incarnation=incarnation,
            host=host,
            port=port,
            generation=self.generation,
            state=self.state,
            ranks=ranks,
            complete=self.complete,
            best=self.best,
            uploaded=tuple(self.uploaded),
            steps=tuple(self.steps),
            evals=tuple(self.evals),
            suspects=self.suspects,
            draining=self.draining,
            storage_error=self.storage_error,
            unfit=self.unfit,
            have=self.directive.key if self.directive else "",
        )


def step_metrics(event: WorkerEvent) -> StepMetrics:
    """Return the metrics of a step as its worker reported them."""
    values = event.values
    of_task = {name: value for name, value in values.items() if name not in StepMetrics.model_fields}
    return StepMetrics(
        step=event.step,
        loss=values["loss"],
        learning_rate=values["learning_rate"],
        grad_norm=values["grad_norm"],
        tokens=int(values["tokens"]),
        seconds=values["seconds"],
        data_wait=values.get("data_wait", 0.0),
        memory_bytes=int(values.get("memory_bytes", 0)),
        metrics=of_task,
    )


def eval_metrics(event: WorkerEvent) -> EvalMetrics:
    """Return the metrics of an evaluation as its worker reported them."""
    values = dict(event.values)
    since = values.pop(OVERFITTING_SINCE, None)
    return EvalMetrics(step=event.step, values=values, overfitting_since=None if since is None else int(since))
