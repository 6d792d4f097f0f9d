"""The pages of docs/ that are made from the source: `python -m tests.docs` writes them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.docs import decisions, exit_codes, metrics, troubleshooting
from tests.docs.codes import ROOT
from tests.real import record

PAGES: Mapping[Path, Callable[[], str]] = {
    ROOT / "docs/troubleshooting.md": troubleshooting.page,
    ROOT / "docs/decisions/README.md": decisions.page,
    record.PAGE: record.page,
    ROOT / "docs/reference/exit-codes.md": exit_codes.page,
    ROOT / "docs/reference/metrics.md": metrics.page,
}
