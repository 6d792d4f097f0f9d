"""Types of values in a status. Pods report many of them and may report anything.

A value that is too long or too large for the API server is cut here, never refused.
"""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

MAX_METRICS = 64
MAX_LOG = 16_384


def at_most(longest: int) -> BeforeValidator:
    """Return a validator that keeps the beginning of a string, or the first items of a list."""

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return value if len(value) <= longest else f"{value[: longest - 3]}..."
        return value[:longest] if isinstance(value, (list, tuple)) else value

    return BeforeValidator(cut)


def _last_lines(value: Any) -> Any:
    return value[-MAX_LOG:] if isinstance(value, str) else value


def _word(value: Any) -> Any:
    """Make a text a word of letters and digits that begins with a letter: `HTTP 403` becomes HTTP403."""
    if not isinstance(value, str):
        return value
    kept = "".join(letter for letter in value if letter.isalnum() and letter.isascii())[:100]
    return kept if kept[:1].isalpha() else f"Reason{kept}"


def _whole(value: Any) -> Any:
    return max(-(2**63), min(value, 2**63 - 1)) if isinstance(value, int) else value


def finite(value: Any) -> Any:
    """Replace NaN and infinity by null: JSON has neither."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {name: one for name, one in value.items() if finite(one) is not None}
    return dict(list(kept.items())[:MAX_METRICS])


Short = Annotated[str, StringConstraints(max_length=256), at_most(256)]
Sentence = Annotated[str, StringConstraints(max_length=4096), at_most(4096)]
Log = Annotated[str, StringConstraints(max_length=MAX_LOG), BeforeValidator(_last_lines)]
Reason = Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$"), BeforeValidator(_word)]
Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float | None, BeforeValidator(finite)]
Metrics = Annotated[dict[str, float], Field(max_length=MAX_METRICS), BeforeValidator(_metrics)]
