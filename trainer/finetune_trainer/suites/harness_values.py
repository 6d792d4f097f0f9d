"""The results of lm-evaluation-harness as values of a suite. Pure: the harness is not imported."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from finetune_trainer.suites.suite_records import SuiteValue

NO_FILTER = "none"  # the harness's name for answers that are taken as they are
ERROR = "_stderr"


def values_of(results: Mapping[str, Mapping[str, Any]], rows: Mapping[str, int]) -> Iterator[SuiteValue]:
    """Yield the values of the harness's results, whose keys are `METRIC,FILTER`."""
    for task, entries in results.items():
        for key, value in entries.items():
            metric, separator, kept = key.partition(",")
            if not separator or metric.endswith(ERROR) or not _is_number(value):
                continue
            error = entries.get(f"{metric}{ERROR},{kept}")
            name = f"{task}.{metric}" if kept == NO_FILTER else f"{task}.{metric}.{kept}"
            shown = float(error) if _is_number(error) else None
            yield SuiteValue(name=name, value=float(value), error=shown, rows=rows.get(task, 0))


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def rows_by_task(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return how many rows of each task were used, from the harness's `n-samples`."""
    return {task: int(count.get("effective") or 0) for task, count in counts.items()}
