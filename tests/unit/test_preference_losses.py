"""The losses of preference tuning: those of TRL, of the same batch, padded and flat; gradients in chunks are exact."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_api.messages import MethodType, Task
from finetune_api.plan import PlannedPreference
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_trainer.worker.attention import use_segmented
from finetune_trainer.worker.batches.completions import PairBatches, SingleBatches, TaughtPairBatches
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedTokens
from finetune_trainer.worker.batches.preference_rows import lenders
from finetune_trainer.worker.losses import output_layer, reference_values
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan, orders
from tests.support.models import make_llama, make_mixtral, make_phimoe
from tests.support.preferences import FUSED, PAD, pair_row, pairs, plan_of, single_rows, trl_loss

# TRL and PEFT ask for the older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
EXACT = 1e-5
CASES = [*(plan_of(loss) for loss in PreferenceLoss), plan_of(PreferenceLoss.KTO, desirable_weight=1.5)]


@dataclass(frozen=True)
class Models:
    """A model some steps away from its reference, for us and for TRL, which changes the models it gets."""

    ours: Any
    reference: Any
    theirs: Any
    their_reference: Any


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.trainer.utils import add_fused_lm_head

        folder = make_llama(tmp_path_factory.mktemp("models") / "llama")
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        reference.config.use_cache = False
        ours = copy.deepcopy(reference)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in ours.parameters():
                weight += 0.05 * torch.randn_like(weight)
        theirs, their_reference = copy.deepcopy(ours), copy.deepcopy(reference)
        for one, outputs in ((theirs, FUSED), (their_reference, ("log_probs",))):
            add_fused_lm_head(one, outputs=outputs)
        yield Models(ours, reference, theirs, their_reference)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def collated(plan: PlannedPreference, tokens: Any, given: Any) -> dict[str, Any]:
    if not PREFERENCE_LOSSES[plan.loss_type].paired:
        return SingleBatches(tokens)(single_rows(given))
    kind = TaughtPairBatches if plan.loss_type is PreferenceLoss.ORPO else PairBatches
    return kind(tokens)([pair_row(pair) for pair in given])


def with_reference(plan: PlannedPreference, batch: dict[str, Any], reference: Any) -> dict[str, Any]:
    if plan.reference == "none":
        return batch
    with torch.no_grad():
        values = head_of(plan, reference).reference_pass(reference, batch)
    if "mismatched" not in batch:
        return batch | {"reference": values.flatten()}
    own, others = values.unbind(1)
    return batch | {"reference": own, "mismatched": batch["mismatched"] | {"reference": others}}


def head_of(plan: PlannedPreference, model: Any, kind: str = "labelled") -> Any:
    """The task's own loss of a model, whose output layer has no hooks of an earlier one."""
    layer = output_layer.output_layer(model)
    layer._forward_pre_hooks.clear()
    layer._forward_hooks.clear()
    vars(layer).pop("forward", None)
    return task_of(make_plan(Task.PREFERENCE, MethodType.FULL, preference=plan, loss_head=kind)).loss(model)


@pytest.mark.parametrize("plan", CASES, ids=lambda plan: f"{plan.loss_type}-{plan.desirable_weight}")
def test_a_loss_is_that_of_trl_padded_flat_and_in_chunks(
    plan: PlannedPreference, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = pairs(5, models.ours.config.vocab_size)
    loss, metrics = trl_loss(plan, models.theirs, models.their_reference, given)
    expected = gradients(models.theirs, loss)
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * models.ours.config.vocab_size * 7)
    for tokens in (PaddedTokens(PAD), FlatTokens()):
        for one in (models.ours, models.reference):
            if isinstance(tokens, FlatTokens):
                use_segmented(one)
            else:
                one.set_attn_implementation("sdpa")
        batch = with_reference(plan, collated(plan, tokens, given), models.reference)
        for kind in ("labelled", "chunked"):
            head = head_of(plan, models.ours, kind)
            head.begin_step(models.ours, [batch], lambda one: one)
            summed = head(models.ours, batch)
            assert summed.items == len(given)
            mean = summed.total / summed.items
            assert float(mean.detach()) == pytest.approx(float(loss.detach()), abs=EXACT), kind
            for name, gradient in gradients(models.ours, mean).items():
                torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=f"{kind} {name}")
            sums = head.objective.sums(summed.facts)
            for name, value in head.objective.metrics(sums.tolist(), head.shared).items():
                assert value == pytest.approx(metrics[name], abs=1e-4), name


def test_smoothed_labels_mix_the_losses_of_both_orders(models: Models) -> None:
    """TRL 1.16 lacks conservative DPO."""
    facts = torch.tensor([[-3.0, -4.0, -3.5, -3.0, 2, 2, 0, 0], [-5.0, -2.0, -4.0, -4.0, 3, 1, 0, 0]])

    def losses(**changes: Any) -> list[float]:
        head = head_of(plan_of(PreferenceLoss.SIGMOID, **changes), models.reference)
        return head.objective.losses(facts, 0.0).tolist()  # type: ignore[no-any-return]

    for smooth, margin in zip(losses(label_smoothing=0.2), (1.5, -3.0), strict=True):
        plain, swapped = (math.log1p(math.exp(-sign * 0.1 * margin)) for sign in (1, -1))
        assert smooth == pytest.approx(0.8 * plain + 0.2 * swapped)


@pytest.mark.parametrize("certain", [(True, False), (False, True), (True, True)])
def test_orpo_is_finite_where_a_completion_is_certain(certain: tuple[bool, bool], models: Models) -> None:
    """A short answer of a trained model has probability 1 in float32, and its odds were infinite."""
    logs = [0.0 if sure else -2.0 for sure in certain]
    facts = torch.tensor([[*logs, 0.0, 0.0, 1.0, 1.0, 3.0, 5.0]], requires_grad=True)
    head = head_of(plan_of(PreferenceLoss.ORPO), models.reference)
    [loss] = head.objective.losses(facts, 5.0)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert facts.grad is not None
    assert bool(torch.isfinite(facts.grad).all()), facts.grad


def test_with_an_adapter_the_reference_is_the_model_without_it(models: Models) -> None:
    plan = plan_of(PreferenceLoss.SIGMOID, reference="adapter-off")
    base = copy.deepcopy(models.reference)
    options: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.5, "use_dora": True}
    beside: dict[str, Any] = {"modules_to_save": ["lm_head"], "trainable_token_indices": {"embed_tokens": [5, 6, 7]}}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options, **beside))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
    use_segmented(base)
    use_segmented(models.reference)
    batch = collated(plan, FlatTokens(), pairs(4, base.config.vocab_size))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    head = head_of(plan, model)
    summed = head(model, batch)
    with torch.no_grad():
        expected = head_of(plan, models.reference).reference_pass(models.reference, batch)
    torch.testing.assert_close(summed.facts[:, 2:4], expected)
    assert not torch.allclose(summed.facts[:, 0:2], expected)
    assert set(gradients(model, summed.total)) == trained
    again = head(model, batch)
    assert torch.equal(again.facts, summed.facts), "without dropout a batch has one loss"


NOISY: dict[str, tuple[Any, dict[str, float]]] = {
    "experts that are drawn": (make_phimoe, {"router_jitter_noise": 0.3}),
    "noise before a router": (make_mixtral, {"router_jitter_noise": 0.1}),
}


@pytest.mark.parametrize("case", NOISY)
def test_nothing_is_drawn_in_training(case: str, tmp_path: Path) -> None:
    make, changes = NOISY[case]
    model = AutoModelForCausalLM.from_pretrained(make(tmp_path, **changes), dtype=torch.float32)
    plan = plan_of(PreferenceLoss.SIMPO)
    batch = collated(plan, PaddedTokens(PAD), pairs(4, model.config.vocab_size))
    head = head_of(plan, model)
    model.eval()
    evaluated = head(model, batch).facts
    model.train()
    for _ in range(3):
        assert torch.equal(head(model, batch).facts, evaluated)
    assert all(
        one.training for name, one in model.named_modules() if name.endswith(("attn", "experts", "embed_tokens"))
    )


class Counted:
    """Rows of one token each; a pass over them returns their token twice."""

    def __init__(self, fails_after: int = 1000) -> None:
        self.lengths = np.ones(40, np.int32)
        self.passes = 0
        self._fails_after = fails_after

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> int:
        return number

    def values(self, batch: list[int]) -> torch.Tensor:
        self.passes += 1
        if self.passes > self._fails_after:
            raise KeyboardInterrupt
        return torch.tensor([[float(number), -float(number)] for number in batch])


def test_reference_values_that_are_computed_are_not_computed_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_values, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(reference_values, "BLOCK_BATCHES", 2)
    plan = make_plan(Task.PREFERENCE, MethodType.FULL, world=1, preference=plan_of(PreferenceLoss.SIGMOID))
    [order] = orders(plan, tmp_path, tmp_path, tmp_path / "work")

    def filled(rows: Counted, given: Any = plan) -> reference_values.ReferenceValues:
        values = reference_values.ReferenceValues(given)
        values.needed["train"] = reference_values.Needed.of(rows, range(0, 40, 2))
        values.fill(order, lambda: reference_values.Passes(rows.values, list, lambda one: one, 4))
        return values

    with pytest.raises(KeyboardInterrupt):
        filled(Counted(fails_after=3))
    again = Counted()
    found = filled(again).values["train"]
    assert again.passes == 3, "of five batches in three blocks, the first block was saved"
    assert found[0:40:2, 0].tolist() == list(range(0, 40, 2))
    assert np.isnan(found[1::2]).all(), "the run does not read these rows"
    whole = Counted()
    filled(whole)
    assert whole.passes == 0
    filled(whole, plan.model_copy(update={"max_length": 65}))
    assert whole.passes == 5, "other data has other values"


def test_a_row_borrows_the_completion_of_another_row_of_its_shard() -> None:
    borrowed = lenders([5, 40])
    assert sorted(borrowed) == list(range(45))
    assert not np.any(borrowed == np.arange(45))
    assert set(borrowed[:5]) == set(range(5))
    assert np.mean(np.abs(borrowed[5:] - np.arange(5, 45)) == 1) < 0.5, "neighbours often share a prompt"
