"""The rules of styles/House find the dialect that they ban, and leave plain sentences alone."""

from pathlib import Path

import pytest

from tests.prose import ROOT, check
from tests.tools import tool

BANNED = {
    "IsNo": ("That name is no field of the job.", "The rows are none."),
    "Person": ("The fault is nobody's.", "It waits until somebody looks."),
    "Feeling": ("The loader wants a list.", "The outage is told on the object."),
    "Riddle": ("Who cannot wait takes a spare.",),
    "Plain": ("It is trained anew.", "Mend the row."),
    "Subject": ("Needs Python and make.",),
    "Filler": ("The plan is very long.",),
    "LongSentence": (f"The plan {'names a value and ' * 12}ends.",),
}
PLAIN = (
    "There is no field of this name.",
    "The job is no longer running.",
    "Who holds which key? The agent holds it.",
    "The loader needs a list of names.",
    "The outage is shown on the object.",
    "To avoid this delay, set `spares: 1`.",
    "Needs of the job come first.",
)


@pytest.fixture(scope="module")
def vale() -> Path:
    """The program; skipped where it cannot be built."""
    return tool("vale")


def findings(folder: Path, sentence: str) -> set[str]:
    """Names of the rules that find something in a page of one sentence."""
    page = folder / "page.md"
    page.write_text(f"# A page\n\n{sentence}\n", "utf-8")
    return {line.split(":")[3].removeprefix("House.") for line in check(str(page)).stdout.splitlines() if line}


@pytest.mark.parametrize(("rule", "sentence"), [(rule, one) for rule, some in BANNED.items() for one in some])
def test_a_rule_finds_what_it_bans(vale: Path, tmp_path: Path, rule: str, sentence: str) -> None:
    assert findings(tmp_path, sentence) == {rule}


@pytest.mark.parametrize("sentence", PLAIN)
def test_plain_sentences_pass(vale: Path, tmp_path: Path, sentence: str) -> None:
    assert findings(tmp_path, sentence) == set()


def test_every_rule_has_a_sentence_that_it_finds() -> None:
    assert {path.stem for path in (ROOT / "styles/House").glob("*.yml")} == set(BANNED)
