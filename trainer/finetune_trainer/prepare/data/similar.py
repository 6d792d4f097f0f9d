"""Rows of texts that belong together: the columns of their negatives, and rows that carry a score instead."""

import re
from collections.abc import Collection, Mapping
from typing import Any

# the names of sentence-transformers (negative, negative_1), of FlagEmbedding (neg) and of Tevatron (negatives)
NEGATIVES = re.compile(r"(hard_?)?(negative|neg)s?(_?[0-9]+)?", re.IGNORECASE)
SCORES = ("score", "scores", "similarity", "similarity_score", "relatedness_score", "label", "labels", "gold_label")


def negative_columns(row: Mapping[str, Any], used: Collection[str]) -> dict[str, str]:
    """Return the columns of a row that hold negatives, by parts whose names begin with `negative`."""
    found = [name for name in row if NEGATIVES.fullmatch(name) and name not in used]
    return {f"negative {number}": name for number, name in enumerate(found, 1)}


def score_column(row: Mapping[str, Any]) -> str | None:
    """Return the column that says how well the texts of a row belong together; None without one."""
    return next((name for name in row if name.lower() in SCORES), None)
