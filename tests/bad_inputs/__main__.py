"""Prints docs/bad-inputs.md: `python -m tests.bad_inputs > docs/bad-inputs.md`."""

import sys

from tests.bad_inputs.page import page

sys.stdout.write(page())
