"""Facts about a field of `spec`, written in its annotation: `nodes: Annotated[int, Supported(), KeepsData()] = 1`.

Every leaf carries one status (Supported, WithoutEffect or Later) and one of ShapesData and KeepsData. A test demands
both. An object may carry Later, Mutable and ClusterOnly, which then hold for everything below it. `facts.py` collects
the markers.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

Marker = TypeVar("Marker")


def marker_of(info: FieldInfo, kind: type[Marker]) -> Marker | None:
    """Return the marker of a kind that a field carries, or None."""
    return next((one for one in info.metadata if isinstance(one, kind)), None)


# ---------------------------------------------------------------- status


@dataclass(frozen=True)
class Supported:
    """A field that works today."""


@dataclass(frozen=True)
class WithoutEffect:
    """A field that is accepted and changes nothing.

    Attributes:
        reason: what happens whatever the value is.
    """

    reason: str


@dataclass(frozen=True)
class Later:
    """A field that is refused with the code NotSupportedYet.

    Attributes:
        reason: what is missing, as the end of "... is not supported yet: ".
        instead: what the user does until then.
        harmless: values that ask for what happens today anyway. The default of the field is one of them.
        values: the values that are refused; None = every value that is not harmless.
    """

    reason: str
    instead: str = "leave it out"
    harmless: tuple[Any, ...] = ()
    values: tuple[Any, ...] | None = None


Status = Supported | WithoutEffect | Later

# ---------------------------------------------------------------- prepared data


@dataclass(frozen=True)
class ShapesData:
    """A field that the prepared data depends on: another value prepares the data again.

    The value stands in the fingerprint of the prepared data under the path of the field, and only if it differs from
    the default. A new field therefore leaves the fingerprints of older jobs as they are.

    Attributes:
        through: name of the value that prepare derives from the field. That value stands in the fingerprint instead.
        key: name in the fingerprint, instead of the path. The value stands there even if it is the default. Only
            fields of the first version have a key: their fingerprints must stay valid.
    """

    through: str = ""
    key: str = ""


@dataclass(frozen=True)
class KeepsData:
    """A field that the prepared data does not depend on: another value reuses the prepared data."""


# ---------------------------------------------------------------- change and place


@dataclass(frozen=True)
class Mutable:
    """A field that may change after the job was created, because a change does not lead to another model.

    Attributes:
        only: condition of the change, such as "while suspended"; empty = at any time, even while the job runs.
        rule: the condition in CEL, with `{field}` for the name of the field; empty = no condition.
        refusal: message of the API server for a change that breaks the condition, with `{field}`.
        same_run: whether a local run goes on after the change; False = `finetune run` begins another run.
    """

    only: str = ""
    rule: str = ""
    refusal: str = ""
    same_run: bool = True


@dataclass(frozen=True)
class Fixed:
    """A field that may not change, although the object that holds it is Mutable."""


@dataclass(frozen=True)
class ClusterOnly:
    """A field without effect where the job runs on one machine with `finetune run`."""
