"""The benchmark of the defaults: how far they are behind, whichever way a metric goes, and the page that says so."""

import json
from typing import Any

import pytest

from benchmarks.defaults import BATCHES, CASES, PAGE, RATES, RESULT, Case, page, points, summary


def runs(scores: dict[str, tuple[float, float]], lost: str = "") -> dict[str, dict[str, Any]]:
    """Made-up runs: the default's score of a task, and that of every point of its grid."""
    found: dict[str, dict[str, Any]] = {}
    for point in points():
        default, other = scores.get(point.case.name, (4.0, 4.0))
        value = default if point.rate is None else other
        value = value if point.trained else (0.1 if point.case.higher else 6.0)
        found[point.name] = {
            "learning_rate": point.rate or 1e-3,
            "global_batch": point.batch or 16,
            "rows": 300,
            "eval_rows": 100,
            "scores": {point.case.metric: None if point.name == lost else value},
            "choices": {"learning_rate": [1e-3, "a paper"]},
        }
    return found


def case(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def test_there_are_a_default_and_twelve_points_for_each_of_four_jobs() -> None:
    assert len(RATES) * len(BATCHES) == 12
    assert len({point.name for point in points()}) == 4 * (1 + 1 + 12)


def test_behind_is_positive_where_the_grid_is_better_whichever_way_the_metric_goes() -> None:
    record = summary(runs({"classification": (0.76, 0.8), "seq2seq": (4.0, 4.2), "causal-lm": (4.4, 4.0)}))
    behind = {task: round(found["behind"], 4) for task, found in record["cases"].items()}
    assert behind.pop("causal-lm-lora") == 0.0
    assert behind == {"classification": 0.05, "seq2seq": pytest.approx(-0.0476, abs=1e-4), "causal-lm": 0.1}
    assert not record["holds"]
    assert record["cases"]["causal-lm"]["gained"] == pytest.approx(0.8), "6.0 to 4.4, where 6.0 to 4.0 can be had"


def test_a_point_without_a_score_is_the_worst_and_the_page_shows_it_as_none() -> None:
    lost = "causal-lm-0.003-8"
    record = summary(runs({"classification": (0.8, 0.8), "seq2seq": (4.0, 4.0), "causal-lm": (4.0, 4.0)}, lost))
    assert record["holds"]
    assert record["cases"]["causal-lm"]["best_point"] != lost
    assert "| 0.003 | - | 4 | 4 |" in page(record)


@pytest.mark.skipif(not RESULT.exists(), reason="nothing was recorded")
def test_the_page_is_made_of_the_record_and_the_defaults_hold() -> None:
    record = json.loads(RESULT.read_text())
    assert PAGE.read_text() == page(record)
    assert record["holds"]
