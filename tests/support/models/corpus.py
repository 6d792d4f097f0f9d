"""The training texts and pieces of the tokenizers of the tiny models."""

import re
from collections.abc import Iterable

CORPUS = (
    "The printer on the third floor is out of paper again, please refill it.",
    "Return a new list containing all items from the iterable in ascending order.",
    "How do I reset my password? Open the settings page and choose security.",
    "Raise ValueError if the value is not present; the default is None.",
    "Thank you for the quick answer, the parcel arrived on Monday morning.",
    "class function module object string number file path index key error test 0 1 2 3 4 5 6 7 8 9",
    "great good fine lovely best happy bad poor awful worst sad angry refund order invoice price",
)
VOCABULARY = 500


def word_pieces(corpus: Iterable[str]) -> list[str]:
    """Return whole words and, for all others, single characters. The library's WordPiece trainer gives another
    vocabulary in every process, so no two runs of a test would train the same model.
    """
    characters, words = _characters_and_words(" ".join(corpus).lower())
    return [*characters, *(f"##{character}" for character in characters), *words]


def sentence_pieces(corpus: Iterable[str]) -> list[tuple[str, float]]:
    """Return the same for SentencePiece, whose words begin with a mark: pieces with their log probabilities."""
    characters, words = _characters_and_words(" ".join(corpus))
    pieces = [("▁", -6.0), *((character, -8.0) for character in characters)]
    return [*pieces, *((f"▁{word}", -4.0) for word in words)]


def _characters_and_words(text: str) -> tuple[list[str], list[str]]:
    characters = sorted({*text, *"abcdefghijklmnopqrstuvwxyz0123456789"} - {" "})
    return characters, sorted(set(re.findall(r"\w{2,}", text)))
