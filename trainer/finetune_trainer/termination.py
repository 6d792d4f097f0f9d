"""A stage's result within the 4,096 bytes that Kubernetes keeps of a termination message."""

from finetune_api.results import StageResult

LIMIT = 4000  # bytes, of 4,096
SHORT_TEXT = 300  # characters of a message, where it must shrink
SHORT_LINES = 5


def fit(result: StageResult) -> str:
    """The result as JSON, with as much of it as fits: first long texts go, then labels, then the last problems.

    What was left out is counted in `note`.
    """
    problems = result.problems
    if _size(result) > LIMIT:
        problems = tuple(
            problem.model_copy(
                update={
                    "message": _shortened(problem.message),
                    "cure": _shortened(problem.cure),
                    "file": None if problem.file is None else _shortened(problem.file),
                    "lines": problem.lines[:SHORT_LINES],
                }
            )
            for problem in problems
        )
        result = result.model_copy(update={"problems": problems, "note": _shortened(result.note)})
    if _size(result) > LIMIT and result.dataset is not None:
        left = f"{len(result.dataset.labels)} labels left out; {result.note}"
        result = result.model_copy(
            update={"dataset": result.dataset.model_copy(update={"labels": ()}), "note": _shortened(left)}
        )
    kept = len(problems)
    while _size(result) > LIMIT and kept > 1:
        kept -= 1
        left = f"{len(problems) - kept} more problems in the log"
        result = result.model_copy(update={"problems": problems[:kept], "note": left})
    return result.model_dump_json(exclude_none=True)


def _shortened(text: str) -> str:
    return text if len(text) <= SHORT_TEXT else text[: SHORT_TEXT - 3] + "..."


def _size(result: StageResult) -> int:
    return len(result.model_dump_json(exclude_none=True).encode())
