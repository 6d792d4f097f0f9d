"""docs/bad-inputs.md, made of the cases; and how many there are."""

from collections import Counter
from itertools import groupby

from tests.bad_inputs.cases import Case, load_all

AREAS = {
    "job": "The job file",
    "training": "Training arguments, adapters and DeepSpeed",
    "pod": "Pods and resources",
    "data": "Data files and rows",
    "label": "Labels",
    "chat": "Conversations and chat templates",
    "source": "Where data lies",
    "model": "The base model",
    "hub": "Models on the hub",
    "plan": "What cannot work on the machine",
}
HEAD = """# Wrong inputs, and how they are reported

Made by `python -m tests.bad_inputs` from the files in `tests/bad_inputs`; do not edit. Each of these mistakes happened
to a user, in the public thread that is named here, and cost at least a start of the training. `finetune validate` finds
every one on a CPU, before anything is trained or stored. A test runs all of them and compares the code, the field and
the line. [Troubleshooting](troubleshooting.md) explains the codes.

"""


def page() -> str:
    """The whole page."""
    cases = load_all()
    parts = [HEAD, f"{len(cases)} cases, {len(codes(cases))} codes.\n"]
    order = list(AREAS)
    cases.sort(key=lambda case: (order.index(case.area), case.name))
    for area, group in groupby(cases, key=lambda case: case.area):
        parts.append(
            f"\n## {AREAS[area]}\n\n| what happened | thread | code | field | line |\n| --- | --- | --- | --- | --- |\n"
        )
        parts += [_row(case) for case in group]
    return "".join(parts)


def codes(cases: list[Case]) -> Counter[str]:
    """How many cases expect each code."""
    return Counter(case.expect.code for case in cases)


def _row(case: Case) -> str:
    repository, _, number = case.thread.partition("#")
    link = f"[{case.thread}](https://github.com/{repository}/issues/{number})"
    field = case.expect.field.replace("|", "\\|")
    return f"| {_escaped(case.says)} | {link} | {case.expect.code} | `{field}` | {case.expect.line or ''} |\n"


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
