"""docs/decisions/README.md: the decisions by number, from their headings."""

import re

from tests.docs.codes import ROOT

FOLDER = ROOT / "docs/decisions"
OPENING = """# Decisions

Each page is short: the context, the choice, what was measured, and what would change our mind. They are kept as they
were written; a later decision may replace an earlier one and says so. `make generate` writes this list.
"""


def page() -> str:
    """Return the text of docs/decisions/README.md."""
    lines = []
    for path in sorted(FOLDER.glob("[0-9]*.md")):
        heading = path.read_text("utf-8").splitlines()[0]
        title = re.sub(r"^# *(\d+[:.]?)? *", "", heading)
        lines.append(f"* [{path.name[:3]}]({path.name}): {title[:1].lower()}{title[1:]}")
    return "\n".join([OPENING, *lines]) + "\n"
