"""One rule that spans several fields, said for us and in CEL for the API server."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.v1alpha1.given import Given


@dataclass(frozen=True)
class Rule:
    """One rule on the object at `at`.

    Attributes:
        at: path of the object that the rule looks at.
        field: the field to blame, relative to `at`; empty = the object itself.
        code: identifier of the problem.
        broken: what is wrong, in words with the values seen, or None where the rule holds.
        cure: what to do.
        cel: the same rule for the API server; None where CEL cannot see the fields (those without one type), or cannot
            say it in few words. The operator refuses such a job a second later.
        says: the message for the API server, which cannot name values; for the reference too.
    """

    at: tuple[str, ...]
    field: str
    code: str
    broken: Callable[[Given], str | None]
    cure: str
    cel: str | None
    says: str
