"""The steps of a job: one frozen value per step. `decide` chooses the step, `lifecycle` writes it to the status."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.messages import Artifact
from finetune_api.results import Approval, ServeOutcome, StageResult, SuiteOutcome
from finetune_api.v1alpha1.status import FailureStatus
from finetune_operator.objects.facts import Obstacle


@dataclass(frozen=True)
class Preparing:
    """The prepare stage runs or starts. `obstacle`: why its pod does not run."""

    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Planned:
    """The plan is ready and `spec.dryRun` is true, so nothing runs."""


@dataclass(frozen=True)
class Starting:
    """The pods of a train Job start. `obstacle`: why they do not; `ready`: nodes whose agents beat."""

    attempt: int
    ready: int
    wanted: int
    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Queued:
    """A queue suspends the train Job."""

    attempt: int


@dataclass(frozen=True)
class Running:
    """The agents of all nodes beat."""

    attempt: int
    wanted: int


@dataclass(frozen=True)
class Recovering:
    """The gang has run and lost a worker or a node. `cause` is a sentence."""

    attempt: int
    ready: int
    wanted: int
    cause: str
    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Ending:
    """A train Job was deleted, and `pods` of it still save and upload. `suspended`: no other Job follows for now."""

    pods: int
    suspended: bool


@dataclass(frozen=True)
class Suspended:
    """A suspended job: no pod runs. `obstacle`: why the job cannot resume."""

    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Exporting:
    """The export stage runs or starts, because training is complete.

    Attributes:
        obstacle: why its pod does not run.
        unserved: why its pod has no container of `export.serveTest`, as a sentence; empty if it did not fail to start.
    """

    obstacle: Obstacle | None = None
    unserved: str = ""


@dataclass(frozen=True)
class Succeeded:
    """All stages are complete.

    Attributes:
        approval: what the gates say; None without gates.
        serving: what the test on a server has shown; None without such a test.
        suites: that the exported model ran through.
    """

    artifacts: Sequence[Artifact]
    approval: Approval | None = None
    serving: ServeOutcome | None = None
    suites: Sequence[SuiteOutcome] = ()


@dataclass(frozen=True)
class Failed:
    """The job failed for good.

    Attributes:
        accepted: whether the spec was valid.
        prepared: whether the prepare stage did not cause the failure.
    """

    failure: FailureStatus
    accepted: bool = True
    prepared: bool = True


Step = (
    Preparing | Planned | Starting | Queued | Running | Recovering | Ending | Suspended | Exporting | Succeeded | Failed
)


@dataclass(frozen=True)
class StageResults:
    """The results of stages that have ended, as far as their pods still exist.

    Attributes:
        prepared: result of a prepare stage that succeeded.
        trained: result of the leader whose pod ended last, whether or not training succeeded.
        complete: whether training is complete.
    """

    prepared: StageResult | None = None
    trained: StageResult | None = None
    complete: bool = False
