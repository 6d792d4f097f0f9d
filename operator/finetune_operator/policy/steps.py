"""Where a job is on its way through the house: one frozen value per step, made by `decide`, told by `lifecycle`."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.messages import Artifact
from finetune_api.results import StageResult
from finetune_api.v1alpha1.status import FailureStatus
from finetune_operator.objects.facts import Obstacle


@dataclass(frozen=True)
class Preparing:
    """The prepare stage runs, or is about to. `obstacle`: why its pod does not."""

    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Planned:
    """Prepared, and `spec.dryRun` asks for no more: nothing runs until it is false."""


@dataclass(frozen=True)
class Starting:
    """A train Job is made, or its pods are coming. `obstacle` as above; `ready` of `wanted` nodes beat."""

    attempt: int
    ready: int
    wanted: int
    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Queued:
    """A queue holds the train Job back."""

    attempt: int


@dataclass(frozen=True)
class Running:
    """All nodes beat."""

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
    """A train Job was deleted; `pods` still save and upload. `suspended`: no other will follow for now."""

    pods: int
    suspended: bool


@dataclass(frozen=True)
class Suspended:
    """Nothing of the job runs. `hindrance`: why resuming is refused."""

    hindrance: Obstacle | None = None


@dataclass(frozen=True)
class Exporting:
    """All is trained; the export stage runs, or is about to."""

    obstacle: Obstacle | None = None


@dataclass(frozen=True)
class Succeeded:
    """All is done."""

    artifacts: Sequence[Artifact]


@dataclass(frozen=True)
class Failed:
    """No retry will help. `accepted`: whether the spec was fine; `prepared`: whether the stage before training was."""

    failure: FailureStatus
    accepted: bool = True
    prepared: bool = True


Step = (
    Preparing | Planned | Starting | Queued | Running | Recovering | Ending | Suspended | Exporting | Succeeded | Failed
)


@dataclass(frozen=True)
class Found:
    """What finished stages left behind, as far as their pods still tell.

    Attributes:
        prepared: result of a prepare stage that succeeded.
        trained: result of the leader whose pod ended last, whatever the ending.
        complete: whether training is done.
    """

    prepared: StageResult | None = None
    trained: StageResult | None = None
    complete: bool = False
