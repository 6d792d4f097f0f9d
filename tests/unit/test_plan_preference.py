"""The plan of preference tuning: the loss with the papers' values, the reference, rate, passes, memory and time."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from finetune_api import yaml12
from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import Plan, PlannedPreference
from finetune_api.preference_losses import PreferenceLoss
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.prepare.plan import planner
from finetune_trainer.prepare.plan.draft import Draft, Workload
from finetune_trainer.prepare.plan.evaluation import evaluation_seconds
from finetune_trainer.prepare.plan.machine import machine_of
from finetune_trainer.prepare.plan.setting import setting_of
from tests.unit.plan_models import decoder
from tests.unit.test_planner import job

ROOT = Path(__file__).parents[2]
SIZE = 7_000_000_000
MODEL = ModelFacts(
    name="m", commit="c", prefix="models/m/", source="file:///m", model_type="llama", parameters=SIZE,
    size_bytes=2 * SIZE, max_positions=4096,
)  # fmt: skip
GPU = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}}, "gpuType": "H100"}


def facts(rows: int = 2000, judged: bool = False, length: int = 500) -> DatasetFacts:
    each = length if judged else 2 * length
    split = SplitFacts(rows=rows, tokens=rows * each, trained_tokens=rows * each // 2, longest=length, examples=rows)
    return DatasetFacts(sha256="d", train=split, eval=split, judged=judged)


def drafted(data: DatasetFacts, task: Task = Task.PREFERENCE, **spec: Any) -> Draft:
    given = job(**{"task": str(task), "method": {"type": "lora"}, **GPU, **spec})
    architecture = decoder(4096, 32, 11008, 32000, 2)
    setting = setting_of(given, task, machine_of(given), planner.length_limit(given, task, 4096))
    return planner.lay_out(setting, Workload(MODEL, architecture, data))


def planned(data: DatasetFacts, task: Task = Task.PREFERENCE, **spec: Any) -> Plan:
    return planner.plan(drafted(data, task, **spec))


def loss_of(plan: Plan) -> PlannedPreference:
    assert plan.preference is not None
    return plan.preference


def reason(plan: Plan, field: str) -> str:
    return next(choice.reason for choice in plan.choices if choice.field == field)


LOSSES = {
    "sigmoid": PlannedPreference(loss_type=PreferenceLoss.SIGMOID, beta=0.1, reference="adapter-off"),
    "ipo": PlannedPreference(loss_type=PreferenceLoss.IPO, beta=0.1, reference="adapter-off"),
    "hinge": PlannedPreference(loss_type=PreferenceLoss.HINGE, beta=0.1, reference="adapter-off"),
    "robust": PlannedPreference(
        loss_type=PreferenceLoss.ROBUST, beta=0.1, label_smoothing=0.1, reference="adapter-off"
    ),
    "sigmoid_norm": PlannedPreference(loss_type=PreferenceLoss.SIGMOID_NORM, beta=5.0, reference="adapter-off"),
    "orpo": PlannedPreference(loss_type=PreferenceLoss.ORPO, beta=0.1, reference="none"),
    "simpo": PlannedPreference(loss_type=PreferenceLoss.SIMPO, beta=2.0, gamma=1.0, reference="none"),
    "kto": PlannedPreference(loss_type=PreferenceLoss.KTO, beta=0.1, reference="adapter-off"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_the_values_of_its_paper(name: str) -> None:
    plan = planned(facts(judged=name == "kto"), preference={"loss_type": name})
    assert plan.preference == LOSSES[name]
    assert "arXiv" in reason(plan, "spec.preference.loss_type")


def test_the_rows_choose_the_loss_and_given_values_stay() -> None:
    assert loss_of(planned(facts())).loss_type is PreferenceLoss.SIGMOID
    assert loss_of(planned(facts(judged=True))).loss_type is PreferenceLoss.KTO
    simpo = loss_of(planned(facts(), preference={"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 3.0}))
    assert (simpo.beta, simpo.gamma) == (10.0, 3.0)
    assert loss_of(planned(facts(), preference={"loss_type": "simpo", "beta": 10.0})).gamma == 5.0
    assert planned(facts(), Task.CAUSAL_LM).preference is None


REFERENCES: dict[str, tuple[dict[str, Any], str, str]] = {
    "an adapter": ({}, "adapter-off", "switched off"),
    "all weights": ({"method": {"type": "full"}}, "cached", "computed once"),
    "an adapter that changes the base": (
        {"method": {"type": "lora", "lora": {"init_lora_weights": "pissa_niter_4"}}},
        "cached",
        "pissa_niter_4 changes the base weights",
    ),
    "an adapter that trains biases": ({"method": {"type": "lora", "lora": {"bias": "all"}}}, "cached", "biases"),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_the_reference_is_the_model_before_training(case: str) -> None:
    spec, reference, why = REFERENCES[case]
    plan = planned(facts(200), **spec)
    assert loss_of(plan).reference == reference
    assert why in reason(plan, "spec.preference.loss_type")


@pytest.mark.parametrize(
    ("loss", "method", "rate"),
    [("sigmoid", "full", 5e-7), ("sigmoid", "lora", 5e-6), ("orpo", "full", 8e-6), ("simpo", "full", 5e-7)],
)
def test_rates_are_those_of_the_papers(loss: str, method: str, rate: float) -> None:
    """At their size, and for the usual batch."""
    training = {"global_batch_size": 16}
    plan = planned(facts(), method={"type": method}, training=training, preference={"loss_type": loss})
    assert plan.schedule.learning_rate == rate
    assert plan.schedule.lr_scheduler_type == "linear"


@pytest.mark.parametrize(("rows", "epochs"), [(100, 3.0), (400, 3.0), (600, 2.0), (5000, 1.0)])
def test_pairs_are_seen_once_and_few_pairs_more_often(rows: int, epochs: float) -> None:
    assert planned(facts(rows)).schedule.epochs == epochs


def test_a_pair_takes_the_memory_and_the_time_of_two_rows() -> None:
    """Of causal-lm, with the same length and micro-batch; the reference without a pass of its own."""
    given = {"training": {"per_device_train_batch_size": 2, "activation_checkpointing": False}}
    pairs = drafted(facts(), preference={"loss_type": "simpo"}, deepspeed={"stage": 2}, **given)
    single = facts(judged=True).model_copy(update={"judged": False})
    rows = drafted(single, Task.CAUSAL_LM, deepspeed={"stage": 2}, dataset={"train": "s3://b/t", "maxLength": 504},
                   training={"per_device_train_batch_size": 4, "activation_checkpointing": False})  # fmt: skip
    kept = [draft.layout.memory.of("activations", "logits") for draft in (pairs, rows)]  # type: ignore[arg-type]
    assert kept[0] == kept[1]
    seconds = [draft.layout.speed.arithmetic / draft.request.rows for draft in (pairs, rows)]
    assert seconds[0] == pytest.approx(2 * seconds[1], rel=0.01)
    switched = drafted(facts(), deepspeed={"stage": 2}, **given)
    assert switched.layout.speed.arithmetic / pairs.layout.speed.arithmetic == pytest.approx(1.5, rel=0.02), (
        "a forward pass"
    )


def test_an_adapter_has_no_dropout() -> None:
    assert planned(facts()).lora["lora_dropout"] == 0.0
    assert planned(facts(judged=True), Task.CAUSAL_LM).lora["lora_dropout"] == 0.05


def test_a_reference_that_is_computed_once_is_in_the_estimate() -> None:
    estimate = planned(facts(200), method={"type": "full"}).prediction.estimate
    assert estimate is not None
    assert "reference" in estimate.how
    assert "reference" not in (planned(facts(200)).prediction.estimate or estimate).how


def test_the_passes_of_an_evaluation_are_those_of_a_step() -> None:
    """Of the model and of its reference; with kto also those of completions of other prompts."""

    def seconds(loss: str, method: str = "lora") -> float:
        data = facts(judged=loss == "kto")
        sequences = {"per_device_train_batch_size": 4 if data.judged else 2}
        training = {**sequences, "activation_checkpointing": False}
        spec = {"preference": {"loss_type": loss}, "deepspeed": {"stage": 2}, "training": training}
        draft = drafted(data, method={"type": method}, **spec)
        assert data.eval is not None
        return evaluation_seconds(draft.layout, draft.machine, data.eval) / data.eval.tokens

    assert seconds("sigmoid") == pytest.approx(2 * seconds("simpo"), rel=0.02)
    assert seconds("kto") == pytest.approx(4 * seconds("simpo"), rel=0.02)
    assert seconds("kto", "full") == pytest.approx(2 * seconds("simpo", "full"), rel=0.02)
    assert seconds("sigmoid", "full") == pytest.approx(seconds("simpo", "full"), rel=0.02)


def test_the_reference_of_rows_that_a_short_run_does_not_read_is_not_estimated() -> None:
    def seconds(steps: int) -> float:
        training = {"global_batch_size": 16, "max_steps": steps, "eval_steps": 100}
        how = planned(facts(2000), method={"type": "full"}, training=training).prediction.estimate
        assert how is not None
        return float(how.how.rpartition("reference ")[2].split()[0])

    assert seconds(25) == pytest.approx((0.2 + 1) / 2 * seconds(500), rel=0.02)


def test_the_passes_of_a_reference_are_in_the_memory_without_an_evaluation() -> None:
    """They take batches as large as those of an evaluation."""
    alone = facts(200).model_copy(update={"eval": None})
    given = {"training": {"per_device_train_batch_size": 2}, "deepspeed": {"stage": 2}}

    def evaluated(**spec: Any) -> int:
        return drafted(alone, **{**given, **spec}).layout.load.evaluated

    assert evaluated(method={"type": "full"}) == 4
    assert evaluated(method={"type": "full"}, preference={"loss_type": "simpo"}) == 0
    assert evaluated() == 0


def test_a_value_that_the_loss_of_the_rows_does_not_read_is_refused() -> None:
    """Without loss_type it is valid until the rows are read: pairs take sigmoid, which reads it."""
    given = {"preference": {"label_smoothing": 0.2}}
    assert loss_of(planned(facts(), **given)).label_smoothing == 0.2
    with pytest.raises(
        SpecError, match=r"is 0.2, and the loss that fits the rows is kto; only sigmoid or robust"
    ) as no:
        planned(facts(judged=True), **given)
    assert no.value.problems[0].field == "spec.preference.label_smoothing"


def test_the_best_checkpoint_is_chosen_by_a_metric_of_the_loss() -> None:
    plan = planned(facts(), training={"metric_for_best_model": "rewards/accuracies"})
    assert (plan.evaluation.best_metric, plan.evaluation.greater_is_better) == ("eval_rewards/accuracies", True)
    assert planned(facts()).evaluation.best_metric == "eval_loss"
    with pytest.raises(SpecError, match=r"evaluation of preference \(kto\) measures eval_loss"):
        planned(facts(judged=True), training={"metric_for_best_model": "rewards/accuracies"})


@pytest.mark.parametrize("page", ["docs/preference.md", "manifests/examples/preference.yaml"])
def test_the_jobs_that_are_shown_are_valid(page: str) -> None:
    text = (ROOT / page).read_text()
    if page.endswith(".md"):
        text = dedent(text[text.index("    apiVersion") :].partition("\n\n")[0])
    shown = parse_job(yaml12.load(text, page)[0])
    assert shown.spec.task is Task.PREFERENCE


def test_an_adapter_is_the_method_that_a_pair_can_be_quantized_with() -> None:
    assert loss_of(planned(facts(), method={"type": str(MethodType.QLORA)})).reference == "adapter-off"
