"""One rule that spans several fields: in Python, and in CEL for the API server."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.v1alpha1.given import Given


@dataclass(frozen=True)
class Rule:
    """A rule about the object at `at`.

    Attributes:
        at: path of the object that the rule is about.
        field: the field at fault, relative to `at`; empty = the object itself.
        code: identifier of the problem.
        broken: returns what is wrong, with the values seen, or None where the rule holds.
        cure: what to do.
        cel: the same rule for the API server; None where CEL cannot read the fields (those without one type), or where
            the rule would be long. The operator refuses such a job a second later.
        says: message of the API server, which cannot name values; the reference shows it too.
    """

    at: tuple[str, ...]
    field: str
    code: str
    broken: Callable[[Given], str | None]
    cure: str
    cel: str | None
    says: str
