"""A stage's result, shortened to the 4,096 bytes that Kubernetes keeps of a termination message."""

import json
from collections.abc import Callable

from finetune_api.beats import Failure, Progress
from finetune_api.errors import Problem
from finetune_api.results import StageResult, SuiteOutcome

LIMIT = 4000  # bytes, of 4,096
LONG_TEXT, SHORT_TEXT, SHORTEST_TEXT = 1000, 300, 120  # bytes of a text that must be shortened
SHORT_LINES = 5
RECOVERIES = 5  # the last ones, if not all fit
CHECKPOINTS = 3


def fit(result: StageResult) -> str:
    """Return the result as JSON, shortened if necessary: values that are also available elsewhere are omitted first.

    `note` counts the labels, warnings and problems that are omitted.
    """
    for shrink in SHRINKS:
        if _size(result) <= LIMIT:
            break
        result = shrink(result)
    return _json(result)


# ---------------------------------------------------------------- the ways to shorten, the least harmful first


def _with_fewer_choices(result: StageResult) -> StageResult:
    while result.plan is not None and result.plan.choices and _size(result) > LIMIT:
        fewer = result.plan.model_copy(update={"choices": result.plan.choices[:-1]})
        result = result.model_copy(update={"plan": fewer})
    return result


def _without_labels(result: StageResult) -> StageResult:
    if result.dataset is None or not result.dataset.labels:
        return result
    dataset = result.dataset.model_copy(update={"labels": ()})
    note = f"{len(result.dataset.labels)} labels omitted; {result.note}"
    return result.model_copy(update={"dataset": dataset, "note": note})


def _with_short_warnings(result: StageResult) -> StageResult:
    warnings = tuple(_shortened(warning, SHORT_TEXT) for warning in result.warnings)
    return result.model_copy(update={"warnings": warnings})


def _with_fewer_warnings(result: StageResult) -> StageResult:
    """Omit warnings from the end, since the last ones matter least."""
    warnings, note = result.warnings, result.note
    for kept in reversed(range(len(warnings))):
        if _size(result) <= LIMIT:
            break
        omitted = f"{len(warnings) - kept} more warnings in the report"
        text = f"{omitted}; {note}" if note else omitted
        result = result.model_copy(update={"warnings": warnings[:kept], "note": text})
    return result


def _with_the_last_eval(result: StageResult) -> StageResult:
    return _with_progress(result, lambda progress: {"evals": progress.evals[-1:]})


def _with_the_last_recoveries(result: StageResult) -> StageResult:
    return _with_progress(result, lambda progress: {"recoveries": progress.recoveries[-RECOVERIES:]})


def _with_the_last_checkpoints(result: StageResult) -> StageResult:
    return _with_progress(
        result,
        lambda progress: {
            "checkpoints": tuple(
                facts
                for facts in progress.checkpoints
                if facts.best or facts.step in {last.step for last in progress.checkpoints[-CHECKPOINTS:]}
            )
        },
    )


def _with_long_texts(result: StageResult) -> StageResult:
    return _with_texts(result, LONG_TEXT)


def _with_short_texts(result: StageResult) -> StageResult:
    return _with_texts(result, SHORT_TEXT)


def _with_texts(result: StageResult, limit: int) -> StageResult:
    problems = tuple(_short_problem(problem, limit) for problem in result.problems)
    progress = result.progress and result.progress.model_copy(
        update={
            "note": _shortened(result.progress.note, limit),
            "failure": _short_failure(result.progress.failure, limit),
            "recoveries": tuple(
                recovery.model_copy(update={"reason": _shortened(recovery.reason, SHORT_TEXT)})
                for recovery in result.progress.recoveries
            ),
        }
    )
    note = _shortened(result.note, limit)
    return result.model_copy(update={"problems": problems, "progress": progress, "note": note})


def _with_fewer_problems(result: StageResult) -> StageResult:
    problems = result.problems
    kept = len(problems)
    while _size(result) > LIMIT and kept > 1:
        kept -= 1
        omitted = f"{len(problems) - kept} more problems in the log"
        result = result.model_copy(update={"problems": problems[:kept], "note": omitted})
    return result


def _with_short_suite_problems(result: StageResult) -> StageResult:
    """Shorten why suites have no values; suites.json has the whole reason."""
    suites = tuple(one.model_copy(update={"problem": _shortened(one.problem, SHORTEST_TEXT)}) for one in result.suites)
    return result.model_copy(update={"suites": suites})


def _with_fewer_suite_values(result: StageResult) -> StageResult:
    """Omit values of suites from the end; suites.json has all of them."""
    most = max((len(one.values) for one in result.suites), default=0)
    for kept in reversed(range(most)):
        if _size(result) <= LIMIT:
            break
        fewer = tuple(_with_values(one, kept) for one in result.suites)
        result = result.model_copy(update={"suites": fewer})
    return result


def _with_values(suite: SuiteOutcome, kept: int) -> SuiteOutcome:
    return suite.model_copy(update={"values": dict(list(suite.values.items())[:kept])})


def _with_short_artifacts(result: StageResult) -> StageResult:
    """Shorten what evaluation and judgement say; the model card and judgement.json have all of it."""
    artifacts = tuple(
        artifact.model_copy(update={"warnings": tuple(_shortened(one, SHORTEST_TEXT) for one in artifact.warnings)})
        for artifact in result.artifacts
    )
    return _with_short_answers(result.model_copy(update={"artifacts": artifacts}), SHORT_TEXT)


def _with_short_answers(result: StageResult, limit: int) -> StageResult:
    """Shorten the messages of the gates and of the test on a server."""
    told, seen = result.approval, result.serving
    if told is not None:
        told = told.model_copy(update={"message": _shortened(told.message, limit)})
    if seen is not None:
        seen = seen.model_copy(update={"message": _shortened(seen.message, limit)})
    return result.model_copy(update={"approval": told, "serving": seen})


def _with_figures_only(result: StageResult) -> StageResult:
    artifacts = tuple(artifact.model_copy(update={"metrics": {}}) for artifact in result.artifacts)
    return _with_progress(
        result.model_copy(update={"artifacts": artifacts}),
        lambda progress: {
            "evals": (),
            "recoveries": (),
            "checkpoints": (),
            "failure": _short_failure(progress.failure, SHORTEST_TEXT),
            "note": "",
        },
    )


def _without_copies(result: StageResult) -> StageResult:
    """Omit the places of pushes; pushes.json has them."""
    artifacts = tuple(artifact.model_copy(update={"pushed": ()}) for artifact in result.artifacts)
    return result.model_copy(update={"artifacts": artifacts})


def _with_places_of_artifacts(result: StageResult) -> StageResult:
    """Keep where the artifacts are and whether they passed. The folder of the run has what suites and findings say."""
    artifacts = tuple(one.model_copy(update={"warnings": ()}) for one in result.artifacts)
    update = {"artifacts": artifacts, "suites": (), "note": _shortened(result.note, SHORTEST_TEXT)}
    return _with_short_answers(result.model_copy(update=update), SHORTEST_TEXT)


def _bare(result: StageResult) -> StageResult:
    """Keep the outcome and the first problem only, which always fit."""
    return StageResult(
        stage=result.stage,
        succeeded=result.succeeded,
        category=result.category,
        problems=tuple(_short_problem(problem, SHORTEST_TEXT) for problem in result.problems[:1]),
        note="the other fields did not fit",
    )


SHRINKS: tuple[Callable[[StageResult], StageResult], ...] = (
    _with_fewer_choices,
    _without_labels,
    _with_short_warnings,
    _with_fewer_warnings,
    _with_the_last_eval,
    _with_the_last_recoveries,
    _with_the_last_checkpoints,
    _with_long_texts,
    _with_short_texts,
    _with_fewer_problems,
    _with_short_suite_problems,
    _with_fewer_suite_values,
    _with_short_artifacts,
    _with_figures_only,
    _without_copies,
    _with_places_of_artifacts,
    _bare,
)


def _with_progress(result: StageResult, update: Callable[[Progress], dict[str, object]]) -> StageResult:
    if result.progress is None:
        return result
    return result.model_copy(update={"progress": result.progress.model_copy(update=update(result.progress))})


def _short_problem(problem: Problem, limit: int) -> Problem:
    texts = {name: _shortened(getattr(problem, name), limit) for name in ("code", "field", "message", "cure")}
    file = None if problem.file is None else _shortened(problem.file, limit)
    return problem.model_copy(update={**texts, "file": file, "lines": problem.lines[:SHORT_LINES]})


def _short_failure(failure: Failure | None, limit: int) -> Failure | None:
    if failure is None:
        return None
    tail = _shortened(failure.log_tail[::-1], limit)[::-1]  # the last lines of a log matter most
    return failure.model_copy(update={"message": _shortened(failure.message, limit), "log_tail": tail})


def _shortened(text: str, limit: int) -> str:
    """Return the beginning of a text, in at most `limit` bytes of JSON: a control character takes six."""
    if _json_bytes(text) <= limit:
        return text
    kept = text[: limit - 3]
    while _json_bytes(kept) > limit - 3:
        kept = kept[: len(kept) * (limit - 3) // _json_bytes(kept)]
    return kept + "..."


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode(errors="replace")) - 2


def _json(result: StageResult) -> str:
    return result.model_dump_json(exclude_defaults=True)


def _size(result: StageResult) -> int:
    return len(_json(result).encode())
