"""The prose check of `make lint`: Vale with the rules of styles/House over every page that people read.

Field descriptions and error texts are checked where they are shown: in docs/reference/finetunejob.md and
docs/troubleshooting.md, which are made from the source. .vale.ini says which rules hold for which page.
"""

import subprocess
import sys
from pathlib import Path

from tests.tools import GoMissingError, build

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs")


def check(*paths: str) -> subprocess.CompletedProcess[str]:
    """Run Vale over files and folders of the checkout; its findings are on stdout, one a line.

    Raises:
        GoMissingError: Vale is not built yet, and there is no Go to build it with.
    """
    command = [str(build("vale")), "--output=line", "--no-global", *paths]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def main() -> int:
    """Check all pages, or those that are named; return Vale's exit status."""
    try:
        found = check(*(sys.argv[1:] or PAGES))
    except GoMissingError as error:
        sys.exit(f"prose: {error}")
    print(found.stdout + found.stderr, end="")
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
