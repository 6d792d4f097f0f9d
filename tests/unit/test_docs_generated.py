"""Pages that are made from the source are current, and every error code of the source has an entry."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.contract import ExitCode
from finetune_trainer.prepare.data.formats import Code
from tests.docs import PAGES, exit_codes
from tests.docs.codes import ROOT
from tests.docs.metrics import operator, run
from tests.docs.troubleshooting import expected, meanings, source, without_cure


@pytest.mark.parametrize(("path", "page"), PAGES.items(), ids=lambda value: getattr(value, "stem", ""))
def test_the_committed_page_is_the_sources(path: Path, page: Callable[[], str]) -> None:
    assert path.read_text("utf-8") == page(), "run: python -m tests.docs"


def test_every_code_has_an_entry_and_every_entry_a_code() -> None:
    """Add a line to docs/troubleshooting.toml for a new code, and take out the line of one that is gone."""
    entries = meanings().codes
    assert [code for code, times in Counter(entries).items() if times > 1] == []
    assert sorted(expected() - set(entries)) == []
    assert sorted(set(entries) - expected()) == []


def test_every_code_has_a_cure() -> None:
    """Add what to do below `cures` in docs/troubleshooting.toml, where the source has no literal."""
    assert sorted(without_cure()) == []
    assert sorted(meanings().cures.keys() - set(meanings().codes)) == []


def test_no_code_of_the_source_is_hidden_from_the_list() -> None:
    """A code that is computed is named below `dynamic` in docs/troubleshooting.toml, with its values."""
    known = meanings().dynamic
    hidden = {place: texts for texts, place in source().unknown.items() if not known.keys() & set(texts)}
    assert hidden == {}


def test_every_entry_says_what_the_code_means_in_a_sentence() -> None:
    vague = {code: text for area in meanings().areas for code, text in area.codes.items() if not text.endswith(".")}
    assert vague == {}


def test_the_codes_are_found_by_every_way_in_which_the_source_writes_them() -> None:
    found = source().entries
    assert {code.value for code in Code} <= set(found)  # members of an enumeration
    assert ("is missing; it is required", "") in found["MissingField"].pairs  # a tuple that a function returns
    assert found["GitLFSPointer"].shown  # a tuple in a table
    assert found["NotDivisible"].shown  # a rule of the API
    assert found["EmptyText"].pairs  # a cure by code
    assert any("disk" in message for message, _ in found["DiskRefused"].shown)  # an f-string


def test_every_exit_code_has_a_meaning() -> None:
    assert set(exit_codes.MEANINGS) == set(ExitCode)


def test_the_metrics_are_those_that_are_served() -> None:
    names = [metric.name for metric in (*operator(), *run())]
    assert len(names) == len(set(names)) > 20
    shown = re.findall(r"^\| `(\w+)`", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE)
    assert {name.removesuffix("_total") for name in shown} == set(names)
