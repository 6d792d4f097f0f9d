"""docs/support.json: which cases were run, with what versions, and how they ended; docs/support.md, made of it.

A case that was not run is shown as not run. A run goes on where it was stopped: what has passed is not run again,
unless the versions have changed.
"""

import json
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.messages import ProblemType
from tests.families.cases import METHODS, STAGES, Case, matrix

if TYPE_CHECKING:
    from tests.families.house import House

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "support.json", DOCS / "support.md"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "tokenizers")
PASSED = "passed"
HEAD = """# What trains, as tests have run it

Made by `python -m tests.families` from `support.json`, which `python -m tests.families run` writes; do not edit.

Each cell is a tiny model of the family (real architecture, real tokenizer, random weights) that two ranks trained for
six steps over gloo on CPU in float32. The loss fell, to the same value within 1e-3 in every ZeRO stage. From the
checkpoint after three steps another run ended with the same losses. The last checkpoint was exported, and transformers
and PEFT alone, in a process of their own, gave the artifact the evaluation loss that the run had reported, within 1e-4.
`make test-all` runs every cell again.

"""


def run(wanted: Callable[[Case], bool], say: Callable[[str], None] = print) -> bool:
    """Run the cases that have not passed with these versions; each result is kept at once, and the page with it.

    Returns:
        whether all of them passed.
    """
    from tests.families.house import House
    from tests.local.harness import Bench
    from tests.support.vanilla import Vanilla

    known = load()
    if known["versions"] != versions():
        known = {"versions": versions(), "machine": machine(), "cases": {}}
    cases = [case for case in matrix() if wanted(case)]
    left = [case for case in cases if known["cases"].get(str(case)) != PASSED]
    left.sort(key=lambda case: case.problem is not ProblemType.SINGLE_LABEL)  # what most jobs are comes first
    say(f"{len(cases)} cases, {len(cases) - len(left)} of them have passed before")
    if not left:
        return True
    failed = 0
    with tempfile.TemporaryDirectory(prefix="finetune-families-") as folder:
        vanilla, bench = Vanilla(), Bench(Path(folder))
        try:
            house, began = House(bench, vanilla, Path(folder)), time.monotonic()
            for number, case in enumerate(left, 1):
                outcome = _outcome(house, case, Path(folder) / str(case))
                failed += outcome != PASSED
                known["cases"][str(case)] = outcome
                say(f"{number}/{len(left)} {case}: {outcome} ({_pace(number, len(left), time.monotonic() - began)})")
                _keep(known)
        finally:
            bench.close()
            vanilla.close()
    say(f"{len(left) - failed} passed, {failed} failed")
    return not failed


def _pace(done: int, all_of_them: int, seconds: float) -> str:
    return f"{seconds:.0f} s, about {seconds / done * (all_of_them - done):.0f} s left"


def _keep(known: dict[str, Any]) -> None:
    """Write the results and their page, each whole or not at all: a run may be killed at any time."""
    for path, text in ((RESULTS, json.dumps(known, indent=1, sort_keys=True) + "\n"), (PAGE, page(known))):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text)
        partial.replace(path)


def _outcome(house: "House", case: Case, folder: Path) -> str:
    try:
        house.passes(case, folder)
    except Exception as error:
        traceback.print_exc()
        return f"failed: {str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return PASSED


def load() -> dict[str, Any]:
    """What is known."""
    if not RESULTS.exists():
        return {"versions": {}, "machine": "", "cases": {}}
    known: dict[str, Any] = json.loads(RESULTS.read_text())
    return known


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {name: version(name) for name in PACKAGES}


def machine() -> str:
    """Where it ran, in words."""
    return f"{platform.system()} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor}, CPU"


def page(known: dict[str, Any]) -> str:
    """docs/support.md."""
    cases = list(matrix())
    outcomes = {str(case): known["cases"].get(str(case), "") for case in cases}
    passed = sum(outcome == PASSED for outcome in outcomes.values())
    seen = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    parts = [HEAD, f"{passed} of {len(cases)} cells passed, with {seen} ({known['machine']}).\n\n"]
    columns = [f"{method}, ZeRO-{stage}" for method in METHODS for stage in STAGES]
    parts.append("| family | task | " + " | ".join(columns) + " |\n" + "|---|---|" + ":-:|" * len(columns) + "\n")
    for family, kind in dict.fromkeys((case.family, case.kind) for case in cases):
        row = [case for case in cases if (case.family, case.kind) == (family, kind)]
        parts.append(f"| {family} | {kind} | " + " | ".join(_mark(outcomes[str(case)]) for case in row) + " |\n")
    if failed := [case for case in cases if outcomes[str(case)] not in ("", PASSED)]:
        parts.append("\n## What failed\n\n")
        parts += [f"* {case}: {outcomes[str(case)].removeprefix('failed: ')}\n" for case in failed]
    return "".join(parts)


def _mark(outcome: str) -> str:
    return {"": "not run", PASSED: "yes"}.get(outcome, "**failed**")


def chosen(
    families: Collection[str] = (),
    tasks: Collection[str] = (),
    methods: Collection[str] = (),
    stages: Collection[int] = (),
) -> Callable[[Case], bool]:
    """Cases of some families, tasks, methods and ZeRO stages; of all where none is named."""
    named = (families, tasks, methods, stages)

    def wanted(case: Case) -> bool:
        own = (case.family, case.task, case.method, case.stage)
        return all(not names or value in names for names, value in zip(named, own, strict=True))

    return wanted
