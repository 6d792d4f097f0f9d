"""docs/promises.md names tests and benchmarks that exist, and each promise once."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "promises.md").read_text("utf-8").splitlines() if line.startswith("| ")]
PROOF = re.compile(r"`((?:tests|benchmarks)/[\w./*-]+)(?:::(\w+))?`")


def test_each_promise_stands_once() -> None:
    promises = Counter(row.split(" | ")[0] for row in ROWS)
    assert [promise for promise, times in promises.items() if times > 1] == []


def test_each_promise_names_a_test_or_a_benchmark_that_exists() -> None:
    proofs = [match.groups() for row in ROWS for match in PROOF.finditer(row)]
    assert len(proofs) > len(ROWS) / 2
    missing = [path for path, _ in proofs if not any(ROOT.glob(path))]
    assert missing == []
    unnamed = [(path, test) for path, test in proofs if test and f"def {test}(" not in (ROOT / path).read_text("utf-8")]
    assert unnamed == []
