"""Counts in words, for sentences. Pure."""


def in_words(number: float) -> str:
    """Return a count as `7 billion`."""
    for limit, letter in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= limit:
            return f"{number / limit:.4g}{letter}"
    return f"{number:.0f}"
