"""The report of a run: what stands on the page, and what is drawn."""

import re

from finetune_api.beats import EvalMetrics
from finetune_trainer.export.run_report.curves import MOST_POINTS, Curve, curve_chart, thinned
from finetune_trainer.export.run_report.run_page import chosen_reason, flat, render_run, run_verdict
from tests.support.reported_run import BEST, SCRIPT, STEPS, eventful_run, planned_run


def text_of(page: str) -> str:
    """The page as a reader sees it."""
    return " ".join(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2]).replace("\N{NO-BREAK SPACE}", " ").split())


def test_the_page_tells_what_happened() -> None:
    text = text_of(render_run(eventful_run()))
    for said in (
        "support-bot",
        "Trained; the evaluation loss rises since step 900",
        "Step 900 was exported: of the checkpoints in storage it has the lowest eval_loss (1).",
        "NodeFault: worker of rank 3 was killed by signal 9",
        "2 in all, 4.2 s, 14 steps made again.",
        "16.00",  # one hour on 16 GPUs
        "40.00 at 2.50 a GPU hour",
        "2.3e+17",  # 6e10 operations of 3,840,000 tokens
        "energy not measured",
        "12 % of the rows",
        "base model I tuned model you expected you",
        "a" * 64,
    ):
        assert said in text, said


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    page = render_run(eventful_run())
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:|\#)""", page)
    assert "default-src 'none'" in page


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render_run(eventful_run()) == render_run(eventful_run())


def test_a_run_without_records_still_has_a_page() -> None:
    bare = eventful_run(progress=None, losses=(), evaluations=(), checkpoints=(), warnings=(), answers=(), spec={})
    text = text_of(render_run(bare))
    assert "No checkpoint in storage holds the course of the loss." in text
    assert "The report on the data has no warning." in text
    assert "Answers" not in text


def test_a_run_on_a_cpu_costs_no_gpu_hours() -> None:
    plan = planned_run(memory=None, estimate=None, flops_per_token=0.0)
    text = text_of(render_run(eventful_run(plan=plan)))
    assert "0, it ran without a GPU" in text
    assert "2.50" not in text
    assert "operations of the model (FLOPs) not measured" in text


def test_the_last_checkpoint_is_named_as_such_if_nothing_was_evaluated() -> None:
    facts = eventful_run()
    plain = [one.model_copy(update={"metrics": {}}) for one in facts.artifacts]
    assert chosen_reason(eventful_run(artifacts=plain)).startswith("Step 900 was exported: it is the last checkpoint")


def test_a_warning_of_the_evaluation_stands_at_the_top() -> None:
    facts = eventful_run()
    warned = [one.model_copy(update={"warnings": ("a skew",)}) for one in facts.artifacts]
    assert run_verdict(eventful_run(artifacts=warned)) == ("warning", "Trained, with 1 warning of the evaluation")


def test_a_long_curve_is_thinned_to_means_and_keeps_its_end() -> None:
    points = [(step, float(step % 2)) for step in range(1, 2001)]
    thin = thinned(points)
    assert len(thin) == MOST_POINTS
    assert {value for _, value in thin[:-1]} <= {0.4, 0.6}
    assert thin[-1] == points[-1]
    assert thinned(points[:10]) == points[:10]


def test_a_curve_stays_within_its_chart_and_leaves_out_what_is_no_number() -> None:
    chart = curve_chart([Curve("train", [(1, 2.0), (50, float("nan")), (100, 1.0)])], 100, "loss", chosen=100)
    [places] = re.findall(r'points="([^"]+)"', chart)
    pairs = [tuple(map(float, one.split(","))) for one in places.split()]
    assert len(pairs) == 2
    assert all(0 <= x <= 1000 and 0 <= y <= 242 for x, y in pairs)
    assert pairs[0][1] < pairs[1][1], "a lower loss is drawn lower"
    assert "exported: step 100" in chart
    assert curve_chart([Curve("train", [])], 100, "loss") == ""


def test_one_evaluation_is_drawn_as_a_dot() -> None:
    facts = eventful_run(losses=(), evaluations=[EvalMetrics(step=STEPS, values={"eval_loss": 1.5})])
    page = render_run(facts)
    assert page.count("<circle") == 1
    assert f"step {STEPS:,}: 1.5" in page
    assert BEST < STEPS


def test_a_spec_is_shown_by_the_paths_of_its_values() -> None:
    assert list(flat({"a": {"b": 1, "c": ["x"]}, "d": "e"})) == [("a.b", "1"), ("a.c", '["x"]'), ("d", "e")]
