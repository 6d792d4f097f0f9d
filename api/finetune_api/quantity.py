"""Kubernetes resource quantities: `500m`, `64Gi`, `8`, `1e3`. The grammar is apimachinery's."""

import re
from decimal import Decimal

PATTERN = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$"

_SUFFIXES = {
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
    **{letter: Decimal(1000) ** -power for power, letter in enumerate("mun", start=1)},
}
_GRAMMAR = re.compile(PATTERN)


def parse_quantity(text: str | int) -> int | float:
    """Return the number that a quantity stands for: an int if it is whole (`64Gi`), else a float (`500m` is 0.5).

    Raises:
        ValueError: the text is not a quantity.
    """
    match = _GRAMMAR.fullmatch(str(text))
    if match is None or str(text).endswith("\n"):
        raise ValueError(f"{text!r} is not a quantity")
    digits, suffix = match.group(1), match.group(2) or ""
    sign = -1 if str(text).startswith("-") else 1
    exponent = suffix[1:] if suffix[:1] in ("e", "E") and len(suffix) > 1 else None
    value = sign * Decimal(digits) * (Decimal(10) ** int(exponent) if exponent else _SUFFIXES[suffix])
    return int(value) if value == value.to_integral_value() else float(value)
