"""Signs of nonsense in one answer, which need no second model. Pure.

A sign counts against a model only as far as the references do not show it too.
"""

import json
from collections.abc import Hashable, Sequence

LONGEST_PERIOD = 16  # tokens of what is said over and over
TIMES = 4  # of a repetition, back to back
FEWEST = 8  # tokens that a repetition covers
GRAM, GRAMS, DISTINCT = 4, 24, 0.5  # of a long answer, more than half of the 4-grams occur twice


def repeats_itself(tokens: Sequence[Hashable]) -> bool:
    """Return whether an answer says the same over and over: up to 16 tokens, 4 times or more, back to back; or less
    than half of its 4-grams are distinct (Holtzman et al. 2020; Welleck et al. 2020)."""
    length = len(tokens)
    for period in range(1, min(LONGEST_PERIOD, length // TIMES) + 1):
        run = 0
        needed = max(period * (TIMES - 1), FEWEST - period)
        for place in range(period, length):
            run = run + 1 if tokens[place] == tokens[place - period] else 0
            if run >= needed:
                return True
    grams = [tuple(tokens[start : start + GRAM]) for start in range(length - GRAM + 1)]
    return len(grams) >= GRAMS and len(set(grams)) < DISTINCT * len(grams)


def is_json(text: str) -> bool:
    """Return whether a text is a JSON object or array; a fence of Markdown around it is allowed."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        bare = bare.partition("\n")[2].removesuffix("```").strip()
    try:
        return isinstance(json.loads(bare), dict | list)
    except (ValueError, RecursionError):
        return False
