"""Answers in another language than their references, by the offline detector of the data report (py3langid)."""

from collections import Counter
from collections.abc import Sequence

from finetune_trainer.prepare.quality.languages import NO_LANGUAGE, decided_languages, language_ranks

FEWEST_LETTERS = 20  # in a text: the language of a shorter one is not certain
CHARACTERS = 300
SURE = 0.9  # probability of another language than that of the reference
RECOGNISED = 0.5  # of the references: below it no language is claimed


def wrong_languages(answers: Sequence[str], references: Sequence[str]) -> list[bool] | None:
    """Return for each answer whether it is surely in a language that no reference has; None where the references speak
    no language that is recognised, such as code or labels."""
    spoken = [_letters(text) >= FEWEST_LETTERS for text in references]
    if sum(spoken) < RECOGNISED * len(references):
        return None
    ranks = [language_ranks(text[:CHARACTERS]) for text, long in zip(references, spoken, strict=True) if long]
    found = decided_languages(ranks)
    known = Counter(language for language in found if language)
    if known.total() < RECOGNISED * len(references):
        return None
    return [_other(text, set(known)) for text in answers]


def _other(text: str, known: set[str]) -> bool:
    if _letters(text) < FEWEST_LETTERS:
        return False
    ranks = language_ranks(text[:CHARACTERS])
    best = max(ranks, key=ranks.__getitem__)
    return best not in {*known, NO_LANGUAGE} and ranks[best] >= SURE


def _letters(text: str) -> int:
    return sum(map(str.isalpha, text[:CHARACTERS]))
