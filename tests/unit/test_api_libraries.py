"""Every name of the installed transformers and PEFT is accepted, decided by another field, or refused as later."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import TrainingArguments

from finetune_api.quantity import parse_quantity
from finetune_api.v1alpha1.foreign import COMMON
from finetune_api.v1alpha1.library_names import LORA_LATER, LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.training import LoraSpec, TrainingSpec
from finetune_api.v1alpha1.tree import spec_fields
from finetune_trainer.worker.arguments import RENAMED, as_installed

FIELDS = {branch.dotted for branch in spec_fields()} | {"metadata.name", "spec"}


def _names(config: Any) -> set[str]:
    return {one.name for one in dataclasses.fields(config)}


# of transformers' data collator for masks, of its EarlyStoppingCallback, and two of ours
OWN = {"global_batch_size", "mlm_probability", "early_stopping_patience", "early_stopping_threshold", "class_weights"}
OWN |= {"router_aux_loss_coef"}  # of a model's config.json


def test_every_training_argument_has_one_home() -> None:
    accepted, owned = set(TrainingSpec.model_fields), {*TRAINING_OWNED, *TRAINING_NO_COUNTERPART}
    assert set(as_installed(dict.fromkeys(accepted - OWN), _names(TrainingArguments))) <= _names(TrainingArguments)
    assert not accepted & owned
    assert _names(TrainingArguments) - accepted - owned == set()


def test_an_argument_has_the_name_that_the_installed_transformers_takes() -> None:
    for new, older in RENAMED.items():
        assert as_installed({new: True, "seed": 1}, {new, older, "seed"}) == {new: True, "seed": 1}
        assert as_installed({new: True, "seed": 1}, {older, "seed"}) == {older: True, "seed": 1}


def test_every_lora_name_has_one_home() -> None:
    accepted, owned = set(LoraSpec.model_fields), set(LORA_OWNED)
    assert accepted <= _names(LoraConfig)
    assert len(accepted | owned | LORA_LATER) == len(accepted) + len(owned) + len(LORA_LATER)
    assert _names(LoraConfig) - accepted - owned - LORA_LATER == set()


def test_every_hint_names_a_field_that_exists() -> None:
    hints = {*TRAINING_OWNED.values(), *LORA_OWNED.values()}
    assert hints <= FIELDS
    assert {hint.removesuffix(".split") for hint in COMMON.values()} <= FIELDS


def test_given_leaves_out_what_is_null() -> None:
    assert TrainingSpec(learning_rate=1e-3, seed=None).given() == {"learning_rate": 1e-3}


QUANTITIES = [
    ("8", 8),
    (8, 8),
    ("500m", 0.5),
    ("64Gi", 64 * 2**30),
    ("1.5Ki", 1536),
    ("1k", 1000),
    ("1e3", 1000),
    ("1E2", 100),
    ("2E", 2 * 10**18),
    ("100n", 1e-7),
    ("-1", -1),
    (".5", 0.5),
]


@pytest.mark.parametrize(("text", "number"), QUANTITIES, ids=lambda part: str(part))
def test_quantities_are_numbers(text: str | int, number: float) -> None:
    assert parse_quantity(text) == number
    assert type(parse_quantity(text)) is type(number)


@pytest.mark.parametrize("text", ["", "Gi", "64 Gi", "64GB", "1e", "0x1", "1.2.3", "1i", "8\n"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@given(st.integers(0, 10**15), st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi"]))
def test_a_whole_quantity_is_exact(number: int, suffix: str) -> None:
    base = 1024 if suffix.endswith("i") else 1000
    power = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3}[suffix.removesuffix("i")]
    assert parse_quantity(f"{number}{suffix}") == number * base**power
