"""The language of each side of a row, offline: py3langid (BSD, a naive Bayes model of byte n-grams, no network).

A row that says too little is judged by the languages that the sure rows of its split are in. Where hardly any row is
sure (made-up words, codes), no language is claimed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from finetune_trainer.prepare.observed.code import prose
from finetune_trainer.prepare.observed.sample import SampledRow
from finetune_trainer.prepare.quality.context import EXCERPTS, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.report import Excerpt, Finding, LanguageRows, Severity
from finetune_trainer.prepare.quality.scripts import script_of

ROWS = 2500  # whose language is detected, and that are searched for people and personal data
LOOKED_AT = 1000  # rows that are all looked at; the others only where these speak several languages
CHARACTERS = 200
FEWEST_LETTERS = 3
SURE = 0.75  # probability
RECOGNISED_ROWS, OTHERS = 0.9, 0.005  # of these rows: then the others of their script are taken to speak as they do
PRESENT_SHARE, PRESENT_ROWS = 0.02, 2
RECOGNISED = 0.5  # of the rows: below it the report has no languages
UNSURE, TIMES = 0.03, 1.5  # of a short row: the best language that is present, if it is better by these factors
SHARE, MIXED_ROWS = 0.01, 10

NAMES = {
    "ar": "Arabic",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "ca": "Catalan",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sr": "Serbian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
NO_LANGUAGE = "zxx"  # ISO 639-2: no linguistic content
Ranks = dict[str, float]


@dataclass(frozen=True)
class RowLanguages:
    """A row of the sample and the languages of its two sides, ISO 639-1; empty where none was recognised."""

    row: SampledRow
    given: str
    learnt: str

    @property
    def language(self) -> str:
        """The language of what is learnt; of a labelled text, the text's."""
        return self.learnt if self.row.learnt else self.given

    @property
    def languages(self) -> set[str]:
        """Those of both sides."""
        return {self.given, self.learnt} - {""}


def speech(split: ObservedSplit) -> list[RowLanguages]:
    """Return the first rows of a split's sample with their languages."""
    rows = split.kept[:ROWS]
    given = _languages([row.given for row in rows])
    learnt = _languages([row.learnt for row in rows])
    return [RowLanguages(*one) for one in zip(rows, given, learnt, strict=True)]


def shares(rows: Sequence[RowLanguages]) -> tuple[LanguageRows, ...]:
    """Return the rows of each language, the largest first, and under an empty code those without one."""
    counts = Counter(one.language for one in rows)
    ordered = sorted(counts.items(), key=lambda pair: (not pair[0], -pair[1], pair[0]))
    return tuple(
        LanguageRows(code=code, name=NAMES.get(code, ""), rows=count, share=round(count / len(rows), 6))
        for code, count in ordered
    )


def mixed(split: ObservedSplit, rows: Sequence[RowLanguages]) -> Iterable[Finding]:
    """Yield a finding of rows in another language than most."""
    counts = Counter(one.language for one in rows if one.language)
    (main, _), *others = counts.most_common() or [("", 0)]
    count = sum(number for _, number in others)
    if count < MIXED_ROWS or count / len(rows) < SHARE:
        return
    named = ", ".join(f"{NAMES[code]} ({number:,})" for code, number in others[:6])
    shown = [one.row for one in rows if one.language == others[0][0]][:EXCERPTS]
    yield split.finding(
        Severity.NOTE,
        "MixedLanguages",
        f"{count_of(count, 'row')} ({percent(count / len(rows))}) {'is' if count == 1 else 'are'} not in {NAMES[main]} "
        f"but in {named}",
        "remove them if the model should use one language; else see that each language has enough rows",
        "10 rows and 1 %; py3langid, by the first 200 characters of what is learnt",
        count,
        len(rows),
        split.sampled(len(rows)),
        tuple(Excerpt(place=row.place, text=(row.learnt or row.given)[:80]) for row in shown),
    )


def _languages(texts: Sequence[str]) -> list[str]:
    """Return the language of each text: the first ones are detected alone, the others too if those are not of one."""
    first = _detected(texts[:LOOKED_AT])
    rest = texts[LOOKED_AT:]
    counts = Counter(language for language in first if language)
    main, rows = counts.most_common(1)[0] if counts else ("", 0)
    if rows < RECOGNISED_ROWS * len(first) or counts.total() - rows > OTHERS * len(first):
        return first + _detected(rest, {*first} - {""})
    scripts = [script_of(text[:CHARACTERS]) for text in texts]
    usual = Counter(scripts[:LOOKED_AT]).most_common(1)[0][0]
    other = [place for place in range(len(first), len(texts)) if scripts[place] != usual]
    found = dict(zip(other, _detected([texts[place] for place in other], {main}), strict=True))
    return first + [found.get(place, main) for place in range(len(first), len(texts))]


def _detected(texts: Sequence[str], known: Iterable[str] = ()) -> list[str]:
    spoken = [prose(text[: 2 * CHARACTERS])[:CHARACTERS] for text in texts]
    wanted = [place for place, text in enumerate(spoken) if _says_something(text)]
    found = dict(
        zip(wanted, decided_languages([language_ranks(spoken[place]) for place in wanted], known), strict=True)
    )
    return [found.get(place, "") for place in range(len(texts))]


def _says_something(text: str) -> bool:
    return sum(map(str.isalpha, text[:60])) >= FEWEST_LETTERS


def decided_languages(rows: Sequence[Ranks], known: Iterable[str] = ()) -> list[str]:
    """Return a language for each row, empty where none is likely.

    Args:
        rows: probability of each language.
        known: languages of other rows of the same data.
    """
    if not rows:
        return []
    best = [max(row, key=row.__getitem__) for row in rows]
    sure = [language if row[language] >= SURE else "" for row, language in zip(rows, best, strict=True)]
    counts = Counter(language for language in sure if language not in ("", NO_LANGUAGE))
    means = {language: sum(row[language] for row in rows) / len(rows) for language in counts}
    many = counts.total() >= 0.4 * len(rows)
    present = {*known} | {
        language
        for language, count in counts.items()
        if count >= max(PRESENT_ROWS, PRESENT_SHARE * len(rows)) and (many or means[language] >= 0.3)
    }
    found = [own if own in NAMES else _likeliest(row, present) for own, row in zip(sure, rows, strict=True)]
    if sum(map(bool, found)) < RECOGNISED * len(rows) and not known:
        return [""] * len(rows)
    return found


def _likeliest(row: Ranks, present: set[str]) -> str:
    first, second, *_ = [*sorted(((row[language], language) for language in present), reverse=True), (0, ""), (0, "")]
    return first[1] if first[0] >= UNSURE and first[0] >= TIMES * second[0] else ""


def language_ranks(text: str) -> Ranks:
    """Return the probability of each language that py3langid knows and `NAMES` has."""
    return dict(_detector()(text))


@cache
def _detector() -> Callable[[str], list[tuple[str, float]]]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # half a second: the model is unpacked

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*NAMES, NO_LANGUAGE])
    rank: Callable[[str], list[tuple[str, float]]] = identifier.rank
    return rank
