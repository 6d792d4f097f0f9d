"""The record of a plan's choices: value, reason, and whether the user or a rule chose. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from finetune_api.errors import Problem
from finetune_api.plan import Choice

T = TypeVar("T")


@dataclass
class ChoiceLog:
    """A log of choices, in the order in which they are made."""

    given: Mapping[str, Any]
    choices: list[Choice] = field(default_factory=list)

    def take(self, name: str, rule: T, reason: str) -> T:
        """Return a value of `spec.training`: the user's if there is one, else the rule's; note it."""
        return self.settle(f"spec.training.{name}", rule, reason, self.given.get(name))

    def settle(self, field: str, rule: T, reason: str, user: Any) -> T:
        """Return the user's value of any field if it is not None, else the rule's; note it."""
        value = rule if user is None else user
        self.note(field, value, reason if user is None else "given", user is not None)
        return value

    def note(self, field: str, value: Any, reason: str, by_user: bool) -> None:
        """Remember a choice."""
        self.choices.append(Choice(field=field, value=value, reason=reason, origin="user" if by_user else "rule"))


def problem(code: str, field: str, message: str, cure: str) -> Problem:
    """Return a problem with a field of the job."""
    return Problem(code=code, field=field, message=message, cure=cure)
