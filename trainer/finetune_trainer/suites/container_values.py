"""The values that a container of a suite leaves: a JSON object of numbers by their names, or the file of results that
lm-evaluation-harness writes."""

import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from finetune_trainer.process.container_order import read_plain
from finetune_trainer.suites.definitions import SuiteError
from finetune_trainer.suites.harness_values import rows_by_task, values_of
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteValue

RESULTS = "results.json"
HARNESS_RESULTS = "results_*.json"  # the harness adds the time to the name that its option --output_path gives
MOST_BYTES, MOST_CONTAINER_VALUES = 4 << 20, 1000
VALUE_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.@:+=,/]{0,119}")
CURE = 'write such as {"accuracy": 0.93} to the file $RESULTS'


def clear_results(folder: Path) -> None:
    """Remove the results of an earlier command."""
    for path in (folder / RESULTS, *folder.glob(HARNESS_RESULTS)):
        path.unlink(missing_ok=True)


def read_results(folder: Path) -> SuiteAnswer:
    """Return what a command has left in its folder.

    Raises:
        SuiteError: nothing, or something that is no object of finite numbers.
    """
    given = [one for one in (folder / RESULTS, *sorted(folder.glob(HARNESS_RESULTS), reverse=True)) if one.is_file()]
    text = read_plain(given[0], MOST_BYTES + 1) if given else ""
    if not text.strip():
        raise SuiteError(f"it ended and left no results: {CURE}")
    if len(text.encode()) > MOST_BYTES:
        raise SuiteError(f"its results have more than {MOST_BYTES >> 20} MiB: {CURE}")
    try:
        found = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise SuiteError(f"its results are no JSON ({error}): {CURE}") from error
    if not isinstance(found, dict) or not found:
        seen = "an empty object" if found == {} else _kind(found)
        raise SuiteError(f"its results are {seen}; they must be an object of numbers by their names: {CURE}")
    answer = _of_harness(found) if isinstance(found.get("results"), dict) else _of_numbers(found)
    if len(answer.values) > MOST_CONTAINER_VALUES:
        told = f"it left {len(answer.values):,} values, and a suite has at most {MOST_CONTAINER_VALUES:,}"
        raise SuiteError(f"{told}: write fewer, such as means")
    for one in answer.values:
        _check(one)
    return answer


def _of_numbers(found: Mapping[str, Any]) -> SuiteAnswer:
    return SuiteAnswer(values=tuple(SuiteValue(name=name, value=_number(name, one)) for name, one in found.items()))


def _of_harness(found: Mapping[str, Any]) -> SuiteAnswer:
    """Return the values of a file that lm-evaluation-harness has written."""
    results = {task: one for task, one in found["results"].items() if isinstance(one, dict)}
    try:
        values = tuple(values_of(results, rows_by_task(found.get("n-samples") or {})))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise SuiteError(f"its results cannot be read as those of lm-evaluation-harness ({error}): {CURE}") from error
    if not values:
        raise SuiteError(f"its results have no value METRIC,FILTER below `results`: {CURE}")
    return SuiteAnswer(values=values, harness=str(found.get("lm_eval_version") or ""))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SuiteError(f"its results have {_kind(value)} for {name[:80]!r}; a value is a number: {CURE}")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _check(one: SuiteValue) -> None:
    if not VALUE_NAME.fullmatch(one.name):
        rule = "a name has at most 120 letters, digits and -_.@:+=,/ and begins with a letter or digit"
        raise SuiteError(f"its results have the name {one.name[:80]!r}; {rule}: rename the value")
    if not isfinite(one.value):
        raise SuiteError(f"its results have {one.value} for {one.name!r}; a value is a finite number: leave it out")


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((dict, "an object"), (list, "a list"), (str, "a text"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")
