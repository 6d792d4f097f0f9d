"""The facts of a run that had everything a report can show: faults, warnings, answers of two models, two artifacts."""

import math
from typing import Any

from finetune_api.beats import CheckpointFacts, EvalMetrics, GangPhase, Progress, Recovery, RecoveryCounts
from finetune_api.errors import FailureCategory
from finetune_api.messages import Artifact, DatasetFacts, ExportForm, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import Choice, Estimate, MemoryPart, Plan, PlannedMemory
from finetune_trainer.export.run_report.run_facts import DataWarning, RunFacts, ShownAnswer

STEPS, BEST = 1200, 900
SCRIPT = "<script>alert(1)</script>"


def planned_run(**changes: Any) -> Plan:
    split = SplitFacts(rows=9600, tokens=480_000, trained_tokens=100_000, longest=40)
    memory = PlannedMemory(
        unit="GPU", limit=80 << 30, source="a label", moment="loss", parts=(MemoryPart(name="w", bytes=1, why=""),)
    )
    values: dict[str, Any] = {
        "task": Task.CAUSAL_LM, "method": MethodType.LORA,
        "model": ModelFacts(
            name="some/decoder", commit="c" * 40, prefix="models/x/c/", source="some/decoder", model_type="llama",
            parameters=10, size_bytes=20,
        ),
        "dataset": DatasetFacts(sha256="d" * 64, train=split, eval=split),
        "nodes": 2, "processes_per_node": 8, "zero_stage": 2, "micro_batch": 4, "gradient_accumulation": 1,
        "global_batch": 64, "max_length": 48, "epochs": 8.0, "max_steps": STEPS, "learning_rate": 1e-3,
        "warmup_steps": 2, "lr_scheduler_type": "linear", "seed": 1, "eval_every_steps": 100,
        "checkpoint_every_steps": 300, "keep_last": 3, "best_metric": "eval_loss", "greater_is_better": False,
        "flops_per_token": 6e10, "memory": memory,
        "estimate": Estimate(step_seconds=3.0, hours=1.0, gpu_hours=16.0, cost="40.00", how="a guess"),
        "choices": (Choice(field="spec.deepspeed.stage", value=2, reason=f"it fits {SCRIPT}", origin="rule"),),
    }  # fmt: skip
    return Plan(**{**values, **changes})


def evaluated(step: int) -> EvalMetrics:
    loss = 1.0 + ((step - BEST) / STEPS) ** 2
    return EvalMetrics(step=step, values={"eval_loss": loss, "eval_exact_match": 0.2 + step / 4000})


def eventful_run(**changes: Any) -> RunFacts:
    """A run on 16 GPUs with two faults, whose evaluation loss rises at the end."""
    evaluations = [evaluated(step) for step in range(100, STEPS + 1, 100)]
    reasons = ("worker of rank 3 was killed by signal 9", "node-with-a-long-name-0123456789." * 4 + " was lost")
    recoveries = [
        Recovery(
            generation=2 + number, time="2026-01-01T12:00:00.000+00:00", reason=reason, lost_steps=7,
            category=FailureCategory.NODE_FAULT, node=1, resumed_step=300 * number or None,
            seconds=None if number else 4.2,
        )
        for number, reason in enumerate(reasons)
    ]  # fmt: skip
    checkpoints = [
        CheckpointFacts(
            step=step, generation=1, saved="2026-01-01T12:00:00+00:00", size_bytes=12_345_678,
            metrics=evaluated(step).values, best=step == BEST,
        )
        for step in (BEST, STEPS)
    ]  # fmt: skip
    progress = Progress(
        phase=GangPhase.DONE, generation=3, step=STEPS, max_steps=STEPS, evals=tuple(evaluations), tokens=3_840_000,
        train_seconds=3600.0, tokens_per_second=1066.7, mfu=0.41, memory_bytes=60 << 30,
        checkpoints=tuple(checkpoints), checkpoint_count=6, recoveries=tuple(recoveries),
        recovery_totals=RecoveryCounts(count=2, restarts=2, lost_steps=14, seconds=4.2), overfitting_since=BEST,
    )  # fmt: skip
    artifacts = [
        Artifact(
            kind="adapter" if form is ExportForm.ADAPTER else "model", form=form, step=BEST, size_bytes=8_000_000,
            uri=f"s3://models/team-a/jobs/default/support-bot/{'0' * 36}/artifacts/{form}", digest=f"sha256:{'a' * 64}",
            metrics=evaluated(BEST).values,
        )
        for form in ExportForm
    ]  # fmt: skip
    warning = DataWarning(
        severity="warning", code="NearCopies", split="train", message="12 % of the rows", cure="remove them"
    )
    values: dict[str, Any] = {
        "name": "support-bot", "uid": "0" * 36, "plan": planned_run(), "artifacts": artifacts,
        "spec": {"model": {"name": "some/decoder"}, "training": {"learning_rate": 0.001}},
        "progress": progress, "evaluations": evaluations, "checkpoints": checkpoints, "warnings": [warning],
        "losses": [(step, 1 + math.exp(-step / 200) + 0.1 * math.sin(step)) for step in range(1, STEPS + 1)],
        "answers": [ShownAnswer(prompt=f"Who? {SCRIPT}", base="I", tuned="you", reference="you")],
        "price": "2.50",
    }  # fmt: skip
    return RunFacts(**{**values, **changes})
