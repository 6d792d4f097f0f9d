"""What the hub's client raises, as one of few reasons: the same for models and data sets."""

from enum import StrEnum


class HubRefusal(StrEnum):
    """The reason why the hub refuses."""

    GATED = "gated"
    NO_REVISION = "no such revision"
    NOT_THERE = "no such repository, or a private one"
    NO_NAME = "no name of a repository"


def hub_refusal(error: Exception) -> HubRefusal | None:
    """Return the reason of an error; None where the hub did not answer, or answered something else."""
    from huggingface_hub import errors

    # the library derives the first two from the third
    reasons: dict[type[Exception], HubRefusal] = {
        errors.GatedRepoError: HubRefusal.GATED,
        errors.RevisionNotFoundError: HubRefusal.NO_REVISION,
        errors.RepositoryNotFoundError: HubRefusal.NOT_THERE,
        errors.HFValidationError: HubRefusal.NO_NAME,
    }
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), None)


def first_line(error: Exception) -> str:
    """Return what an error says, shortened to its first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
