"""The report of a run: what stands on the page, and what is drawn."""

import json
import math
import re
from pathlib import Path

import pytest

from finetune_api.beats import EvalMetrics
from finetune_api.contract import checkpoint_name
from finetune_api.messages import Artifact, ExportForm
from finetune_api.plan import Choice
from finetune_trainer.export.push.copies import PushOutcome
from finetune_trainer.export.run_report import run_facts
from finetune_trainer.export.run_report.curves import MOST_POINTS, Curve, curve_chart, thinned
from finetune_trainer.export.run_report.run_facts import read_run, shown_spec
from finetune_trainer.export.run_report.run_page import chosen_reason, flat, render_run, run_verdict
from finetune_trainer.storage import FolderStore, upload_tree
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
        "energy of the whole run not measured",
        "12 % of the rows",
        "base model I tuned model you expected you",
        "a" * 64,
    ):
        assert said in text, said


def test_the_page_tells_what_was_pushed_where_and_what_failed() -> None:
    copies = [
        PushOutcome(ExportForm.MERGED, "oci://registry.example/bot:v1", digest="sha256:c0ffee"),
        PushOutcome(
            ExportForm.ADAPTER, "https://hub.example/team/bot", problem="it refused https://me:key@hub.example"
        ),
    ]
    page = render_run(eventful_run(copies=copies, waiting=1))
    text = text_of(page)
    assert "Trained and exported; 1 of 3 copies failed" in text
    assert "merged oci://registry.example/bot:v1 sha256:c0ffee" in text
    assert "adapter https://hub.example/team/bot failed: it refused" in text
    assert "me:key" not in page
    assert "1 more place was not tried when this page was written." in text
    assert "Copies in other places" not in text_of(render_run(eventful_run()))


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


def stored_run(tmp_path: Path, **files: object) -> FolderStore:
    store = FolderStore(tmp_path)
    for name, content in files.items():
        store.put(f"jobs/a/b/c/{name}.json", json.dumps(content).encode())
    return store


def test_credentials_of_a_spec_are_not_shown(tmp_path: Path) -> None:
    spec = {
        "dataset": {"train": ["https://me:word1@files.example/rows.csv?X-Amz-Signature=word2#word3"]},
        "deepspeed": {"config": {"wandb": {"api_key": "word4", "team": "ours"}, "Token": {"value": "word5"}}},
        "training": {"note": "redis://:word6@host/0, then hf://set@main and https://files.example/b?sig=word7"},
        "model": {"tokenSecretRef": {"name": "hub", "key": "entry"}, "newTokens": ["<a>"]},
        "podTemplate": {"env": ["word8"]},
    }
    shown = shown_spec(stored_run(tmp_path, spec=spec), "jobs/a/b/c/")
    assert "word" not in json.dumps(shown)
    assert shown["dataset"] == {"train": ["https://files.example/rows.csv"]}
    assert shown["deepspeed"] == {"config": {"wandb": {"api_key": "(hidden)", "team": "ours"}, "Token": "(hidden)"}}
    assert shown["training"] == {"note": "redis://host/0, then hf://set@main and https://files.example/b"}
    assert shown["model"] == spec["model"]
    choice = Choice(field="spec.training.hub_token", value="word9", reason="of https://a:word@b/c?word", origin="user")
    assert "word" not in render_run(eventful_run(plan=planned_run(choices=(choice,))))


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    losses = (2.0, None, math.nan, math.inf, 1e301, 10**400, "x", 1)
    history = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    store, folder = stored_run(tmp_path / "store"), tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    info = {"step": 9, "generation": 1, "nodes": 1, "processes_per_node": 1, "zero_stage": 0, "samples": 1}
    upload_tree(store, folder, f"jobs/a/b/c/checkpoints/{checkpoint_name(9, 1)}/", "checkpoint", info)
    facts = read_run(store, "jobs/a/b/c/", planned_run(), [], name="b", uid="c")
    assert facts.losses == [(0, 2.0), (7, 1.0)]
    assert curve_chart([Curve("train", [(1, math.inf), (2, -1e307), (3, 1.0)])], 3, "loss").count("<circle") == 1


def test_a_log_that_is_too_large_is_left_out_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_facts, "MOST_LOG_BYTES", 20)
    store, folder = stored_run(tmp_path / "store"), tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"step": 1, "loss": 2.0}]}))
    info = {"step": 9, "generation": 1, "nodes": 1, "processes_per_node": 1, "zero_stage": 0, "samples": 1}
    upload_tree(store, folder, f"jobs/a/b/c/checkpoints/{checkpoint_name(9, 1)}/", "checkpoint", info)
    facts = read_run(store, "jobs/a/b/c/", planned_run(), [], name="b", uid="c")
    assert (facts.losses, facts.large_log) == ([], (folder / "trainer_state.json").stat().st_size)
    text = text_of(render_run(eventful_run(losses=(), large_log=150_000_000)))
    assert "The curve of training is left out: the log has" in text


def test_dots_are_thinned_as_lines_are() -> None:
    chart = curve_chart([Curve("eval", [(step, step % 7) for step in range(5000)], dots=True)], 5000, "loss")
    assert chart.count("<circle") <= MOST_POINTS


@pytest.mark.parametrize(("generation", "shown"), [(2, True), (1, False)])
def test_answers_of_a_judged_checkpoint_are_shown_for_that_checkpoint_only(
    tmp_path: Path, generation: int, shown: bool
) -> None:
    answers = [{"prompt": "who", "tuned": "you", "base": "I"}]
    store = stored_run(
        tmp_path / "store", judgement={"step": BEST, "generation": generation, "settings": "asked", "answers": answers}
    )
    folder = tmp_path / "made"
    folder.mkdir()
    upload_tree(store, folder, "jobs/a/b/c/artifacts/adapter/", "artifact", {"step": BEST, "generation": 2})
    artifact = Artifact(kind="adapter", uri=f"{store.uri}/jobs/a/b/c/artifacts/adapter", step=BEST)
    facts = read_run(store, "jobs/a/b/c/", planned_run(), [artifact], name="b", uid="c")
    assert [one.base for one in facts.answers] == (["I"] if shown else [])
