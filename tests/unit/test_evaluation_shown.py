"""An evaluation as people see it: on the model card and on the terminal."""

import io
from pathlib import Path

from rich.console import Console

from finetune_api.beats import EvalMetrics, Progress
from finetune_api.messages import MethodType, Task
from finetune_api.preference_losses import PreferenceLoss
from finetune_trainer.evaluations.records import EvaluationRecord, LabelScore, Sample, record_path, samples_path
from finetune_trainer.evaluations.stored import StoredEvaluation, load_evaluation
from finetune_trainer.export.card import card
from finetune_trainer.export.evaluated import evaluation_sections
from finetune_trainer.export.layout import Base
from finetune_trainer.run.screen import Screen
from finetune_trainer.storage import FolderStore
from tests.local.harness import make_plan
from tests.support.preferences import plan_of

RECORD = EvaluationRecord(
    step=60,
    metrics={"eval_loss": 0.5},
    generated=64,
    per_class=(LabelScore(label="a|b", precision=0.5, recall=1.0, f1=2 / 3, support=7),),
)
SAMPLES = tuple(Sample(row=row, prompt=f"Q{row} ```", reference="yes\nno", answer="yes " * 300) for row in range(3))


def test_what_an_evaluation_left_in_storage_is_found_by_its_step(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert load_evaluation(store, "run/", 60) == StoredEvaluation()
    store.put(f"run/outputs/{record_path(60)}", RECORD.to_json().encode())
    store.put(f"run/outputs/{samples_path(60)}", "".join(f"{one.model_dump_json()}\n" for one in SAMPLES).encode())
    assert load_evaluation(store, "run/", 60) == StoredEvaluation(RECORD, SAMPLES)
    assert load_evaluation(store, "run/", 40) == StoredEvaluation()


def test_a_card_shows_each_label_and_answers_that_cannot_break_out_of_their_fence() -> None:
    text = "\n".join(evaluation_sections(StoredEvaluation(RECORD, SAMPLES)))
    assert "| a\\|b | 0.500 | 1.000 | 0.667 | 7 |" in text
    assert "64 generated answers" in text
    assert "````\nQ0 ```\n````" in text
    assert "```\nyes\nno\n```" in text
    assert "[...]" in text
    assert evaluation_sections(StoredEvaluation()) == []


def test_a_card_names_the_loss_of_preference_tuning_with_its_parameters() -> None:
    loss = plan_of(PreferenceLoss.SIGMOID, label_smoothing=0.1)
    plan = make_plan(Task.PREFERENCE, MethodType.LORA, preference=loss)
    text = card(plan, Base("org/base", "main", on_hub=True), 12, {"eval_rewards/accuracies": 0.9}, {})
    assert "| loss | sigmoid: DPO (arXiv 2305.18290) |\n| beta | 0.1 |\n| label_smoothing | 0.1 |" in text
    assert "desirable_weight" not in text
    assert "| eval_rewards/accuracies | 0.9 |" in text


def screen() -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, width=400)), out


def test_a_terminal_shows_two_answers_beside_the_right_ones() -> None:
    shown, out = screen()
    shown.show_samples(SAMPLES)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("sample    Q0 ``` -> yes yes")
    assert lines[0].endswith("... (right: yes no)")


def test_a_terminal_says_once_that_a_run_overfits_and_that_it_stopped_early() -> None:
    shown, out = screen()
    evals = (EvalMetrics(step=8, values={"eval_loss": 1.5}),)
    for sentence in ("", "", "stopped early at step 10: eval_loss did not improve for 3 evaluations"):
        shown.show_progress(
            Progress(phase="train", generation=1, evals=evals, overfitting_since=4, stopped_early=sentence, max_steps=9)
        )
    told_lines = [line for line in out.getvalue().splitlines() if "step 8" not in line]
    assert told_lines == [
        "eval      overfits since step 4: eval loss rises, training loss falls",
        "eval      stopped early at step 10: eval_loss did not improve for 3 evaluations",
    ]
