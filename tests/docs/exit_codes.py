"""docs/reference/exit-codes.md: how programs and containers end, from the codes that both sides share."""

from finetune_api.contract import ExitCode
from finetune_api.errors import VERDICTS, FailureCategory, category_of
from finetune_trainer.commands.faults import INTERRUPTED, PIPE_CLOSED

OPENING = """# Exit codes

Codes from 64 to 79 are this project's own. "Final" means that the same program with the same input would end in the
same way, so nothing starts it again. `make generate` writes this page.
"""
MEANINGS = {
    ExitCode.OK: "The program did what it was asked to do. Of a training pod: the run is complete.",
    ExitCode.UNKNOWN: "Any other error. The log has the cause.",
    ExitCode.USER_ERROR: "The job, or a file or folder that an option names, breaks a rule.",
    ExitCode.DATA_ERROR: "The data breaks a rule. With `--strict`: the report on the data has warnings.",
    ExitCode.NOT_REPRODUCED: "`finetune reproduce` trained an artifact again, and the weights are others.",
    ExitCode.STORAGE_ERROR: "The storage refuses, or cannot be reached.",
    ExitCode.DISTRIBUTED: "A worker lost a peer. The code is that of a victim, so it does not name the cause.",
    ExitCode.OUT_OF_MEMORY: "A rank ran out of memory.",
    ExitCode.DIVERGED: "The loss or a gradient became NaN or infinite.",
    ExitCode.GANG_FAILED: "The leader gave the run up: no restart is left, or a restart would not help.",
    ExitCode.DRAINED: "An announced stop: the pod has saved. It does not count as a failure.",
}
COMMAND = {
    2: "An option or an argument of the command line does not exist.",
    INTERRUPTED: "Ctrl-C. After `finetune run` the same command goes on from the last checkpoint.",
    PIPE_CLOSED: "The program that reads the output has ended, as in `finetune plan job.yaml \\| head`.",
}
OF_NODES = frozenset({ExitCode.DISTRIBUTED, ExitCode.GANG_FAILED, ExitCode.DRAINED})
FOREIGN = {
    137: "The container was killed, most often because it used more memory than its limit (`OOMKilled`).",
}


def page() -> str:
    """Return the text of docs/reference/exit-codes.md."""
    lines = ["| code | name | category of the failure | final | meaning |", "| --- | --- | --- | --- | --- |"]
    for code in ExitCode:
        category = category_of(code)
        shown = "" if category is FailureCategory.UNKNOWN else f"`{category}`"
        where = " Only of processes that a run starts." if code in OF_NODES else ""
        final = "yes" if code in VERDICTS else ""
        lines.append(f"| {int(code)} | `{code.name}` | {shown} | {final} | {MEANINGS[code]}{where} |")
    parts = [OPENING, "\n".join(lines), "\n## Of the command line alone\n", _table(COMMAND)]
    parts += ["\n## Of the system\n", _table(FOREIGN)]
    return "\n".join(parts) + "\n"


def _table(meanings: dict[int, str]) -> str:
    rows = (f"| {code} | {meaning} |" for code, meaning in meanings.items())
    return "\n".join(["| code | meaning |", "| --- | --- |", *rows])
