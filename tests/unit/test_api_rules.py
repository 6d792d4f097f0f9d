"""Rules between fields: what is refused, what is not, and which field is blamed."""

import copy
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.v1alpha1 import parse_job
from tests.unit.test_api_parse import MINIMAL


def told(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Code and field of every problem of the minimal job with these parts of its spec replaced."""
    job = copy.deepcopy(MINIMAL)
    job["spec"] |= spec
    try:
        parse_job(job)
    except SpecError as error:
        return [(problem.code, problem.field) for problem in error.problems if problem.code != "NotSupportedYet"]
    return []


EVALUATED = {"dataset": {"train": "file://data/train.csv", "eval": {"split": 0.1}}}
PREFERENCE = {"task": "preference"}
GPUS = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 4}}}
BROKEN = {
    "evaluation without data": ({"training": {"eval_steps": 10}}, "NeedsOther", "spec.training.eval_steps"),
    "a best model without evaluation": (
        {"training": {"metric_for_best_model": "loss"}},
        "NeedsOther",
        "spec.training.metric_for_best_model",
    ),
    "a metric that nobody measures": (
        EVALUATED | {"training": {"metric_for_best_model": "eval_f2"}},
        "UnknownMetric",
        "spec.training.metric_for_best_model",
    ),
    "a metric of another task": (
        EVALUATED | {"task": "causal-lm", "training": {"metric_for_best_model": "accuracy"}},
        "UnknownMetric",
        "spec.training.metric_for_best_model",
    ),
    "a metric of answers, and none are generated": (
        EVALUATED | {"evaluation": {"generate": 0}, "training": {"metric_for_best_model": "chrf"}},
        "UnknownMetric",
        "spec.training.metric_for_best_model",
    ),
    "a metric of several labels for one": (
        EVALUATED
        | {
            "task": "classification",
            "problemType": "single_label_classification",
            "training": {"metric_for_best_model": "micro_f1"},
        },
        "UnknownMetric",
        "spec.training.metric_for_best_model",
    ),
    "stopping early without evaluation": (
        {"training": {"early_stopping_patience": 3}},
        "NeedsOther",
        "spec.training.early_stopping_patience",
    ),
    "by how much without how often": (
        EVALUATED | {"training": {"early_stopping_threshold": 0.1}},
        "NeedsOther",
        "spec.training.early_stopping_threshold",
    ),
    "answers without rows to answer": ({"evaluation": {"generate": 8}}, "NeedsOther", "spec.evaluation.generate"),
    "answers of a classification": (
        EVALUATED | {"task": "classification", "evaluation": {"generate": 8}},
        "NeedsOther",
        "spec.evaluation.generate",
    ),
    "a warm-up as long as the run": (
        {"training": {"warmup_steps": 100, "max_steps": 100}},
        "NeverReached",
        "spec.training.warmup_steps",
    ),
    "a schedule without its minimum": (
        {"training": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"num_cycles": 1}}},
        "NeedsOther",
        "spec.training.lr_scheduler_type",
    ),
    "a module adapted and trained whole": (
        {"method": {"type": "lora", "lora": {"target_modules": ["query", "value"], "modules_to_save": ["query"]}}},
        "Conflict",
        "spec.method.lora.modules_to_save",
    ),
    "names frozen beside an adapter": (
        {"method": {"type": "lora", "freeze": ["embed"]}},
        "Conflict",
        "spec.method.freeze",
    ),
    "an adapter to start from, and all weights": (
        {"model": {"uri": "file://m", "adapter": "file://a"}, "method": {"type": "full"}},
        "Conflict",
        "spec.model.adapter",
    ),
    "an adapter to start from, and a configuration of another": (
        {"model": {"uri": "file://m", "adapter": "file://a"}, "method": {"type": "lora", "lora": {"r": 8}}},
        "Conflict",
        "spec.model.adapter",
    ),
    "an adapter to start from, and tokens new to it": (
        {"model": {"uri": "file://m", "adapter": "file://a", "newTokens": ["<x>"]}},
        "Conflict",
        "spec.model.adapter",
    ),
    "some layers of all linear modules": (
        {"method": {"type": "lora", "lora": {"layers_to_transform": [1]}}},
        "Conflict",
        "spec.method.lora.layers_to_transform",
    ),
    "DoRA with a bias": (
        {"method": {"type": "lora", "lora": {"use_dora": True, "lora_bias": True}}},
        "Conflict",
        "spec.method.lora.lora_bias",
    ),
    "parameters adapted with dropout": (
        {"method": {"type": "lora", "lora": {"target_parameters": ["mlp.w"], "lora_dropout": 0.1}}},
        "Conflict",
        "spec.method.lora.target_parameters",
    ),
    "parameters offloaded that are not sharded": (
        {"deepspeed": {"stage": 2, "offload": {"parameters": "cpu"}}},
        "NeedsOther",
        "spec.deepspeed.offload.parameters",
    ),
    "half a device": (
        {"resourcesPerNode": {"limits": {"nvidia.com/gpu": "500m"}}},
        "InvalidQuantity",
        "spec.resourcesPerNode.limits",
    ),
    "more ranks than GPUs": (GPUS | {"processesPerNode": 5}, "TooManyProcesses", "spec.processesPerNode"),
    "a mount without its volume": (
        {"podTemplate": {"volumes": [{"name": "a"}], "volumeMounts": [{"name": "b", "mountPath": "/b"}]}},
        "NeedsOther",
        "spec.podTemplate.volumeMounts",
    ),
    "the loss of another task": (
        {"task": "causal-lm", "preference": {"beta": 0.1}},
        "NeedsOther",
        "spec.preference",
    ),
    "the loss of preferences without a task": ({"preference": {"beta": 0.1}}, "NeedsOther", "spec.preference"),
    "the margin of another loss": (
        PREFERENCE | {"preference": {"loss_type": "ipo", "simpo_gamma": 1.0}},
        "Conflict",
        "spec.preference.simpo_gamma",
    ),
    "labels that are wrong at times, for a loss without them": (
        PREFERENCE | {"preference": {"loss_type": "kto", "label_smoothing": 0.1}},
        "Conflict",
        "spec.preference.label_smoothing",
    ),
    "weights of labels for pairs": (
        PREFERENCE | {"preference": {"desirable_weight": 2.0}},
        "Conflict",
        "spec.preference.desirable_weight",
    ),
    "a preference for each token": (
        {"task": "preference", "dataset": {"train": "file://data/train.csv", "lossOn": "all"}},
        "Conflict",
        "spec.dataset.lossOn",
    ),
    "an accuracy of single completions": (
        EVALUATED
        | PREFERENCE
        | {"preference": {"loss_type": "kto"}, "training": {"metric_for_best_model": "rewards/accuracies"}},
        "UnknownMetric",
        "spec.training.metric_for_best_model",
    ),
    "answers of preferences": (
        EVALUATED | PREFERENCE | {"evaluation": {"generate": 8}},
        "NeedsOther",
        "spec.evaluation.generate",
    ),
}
KEPT = {
    "evaluation of a split": EVALUATED | {"training": {"eval_steps": 10, "metric_for_best_model": "eval_macro_f1"}},
    "a metric without its prefix": EVALUATED | {"task": "causal-lm", "training": {"metric_for_best_model": "loss"}},
    "a metric of answers": EVALUATED | {"task": "seq2seq", "training": {"metric_for_best_model": "eval_rouge_l"}},
    "a metric of numbers": EVALUATED
    | {"task": "classification", "problemType": "regression", "training": {"metric_for_best_model": "spearman"}},
    "stopping early by evaluations": EVALUATED
    | {"training": {"early_stopping_patience": 3, "early_stopping_threshold": 0.01}},
    "answers of rows held out": EVALUATED | {"evaluation": {"generate": 8, "samples": 2}},
    "no answers": {"evaluation": {"generate": 0}},
    "a warm-up as a ratio": {"training": {"warmup_steps": 0.5, "max_steps": 1}},
    "a warm-up of unknown share": {"training": {"warmup_steps": 100}},
    "a schedule with its minimum": {
        "training": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
    },
    "modules by pattern": {
        "method": {"type": "lora", "lora": {"target_modules": "all-linear", "modules_to_save": ["pooler"]}}
    },
    "parameters not offloaded": {"deepspeed": {"stage": 2, "offload": {"parameters": "none"}}},
    "parameters of stage 3": {"deepspeed": {"stage": 3, "offload": {"parameters": "cpu"}}},
    "preferences with their defaults": PREFERENCE,
    "a loss with all that it reads": PREFERENCE
    | {"preference": {"loss_type": "kto", "beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 1.0}},
    "labels that are wrong at times": PREFERENCE | {"preference": {"label_smoothing": 0.2}},
    "a metric of pairs": EVALUATED
    | PREFERENCE
    | {"training": {"metric_for_best_model": "eval_rewards/accuracies"}, "preference": {"loss_type": "simpo"}},
    "half a core": {"resourcesPerNode": {"limits": {"cpu": "500m", "nvidia.com/gpu": "2"}}},
    "a rank per GPU": GPUS | {"processesPerNode": 4},
    "ranks on CPU": {"processesPerNode": 4},
    "a mount with its volume": {
        "podTemplate": {"volumes": [{"name": "a"}], "volumeMounts": [{"name": "a", "mountPath": "/a"}]}
    },
}


@pytest.mark.parametrize("about", BROKEN)
def test_a_broken_rule_blames_its_field(about: str) -> None:
    spec, code, field = BROKEN[about]
    assert told(spec) == [(code, field)]


@pytest.mark.parametrize("about", KEPT)
def test_a_rule_that_is_kept_is_not_mentioned(about: str) -> None:
    assert told(KEPT[about]) == []
