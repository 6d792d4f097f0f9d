"""Which FineTuneJob is meant: its key, its identity, and the job with the spec that counts. Pure."""

from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.contract import Label
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.objects.kinds import Object

GONE = ""  # uid of a FineTuneJob that no longer exists


class JobKey(NamedTuple):
    """The key of a FineTuneJob in the queue. A new job may have the key of a deleted one."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Owner:
    """The FineTuneJob that child objects belong to.

    Attributes:
        uid: GONE if the object no longer exists and only pods of it remain.
    """

    name: str
    namespace: str
    uid: str

    @property
    def selector(self) -> str:
        """Label selector of all child objects."""
        return f"{Label.UID}={self.uid}"


@dataclass(frozen=True)
class AcceptedJob:
    """A FineTuneJob with a spec that the operator can carry out.

    Attributes:
        spec: the parsed fields.
        written: the same fields as the user wrote them; pods get them unchanged.
    """

    owner: Owner
    spec: FineTuneJobSpec
    written: Object
