"""The router's auxiliary loss: transformers' value for a document, and the same sum however documents are batched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from finetune_api.errors import SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.plan import PlannedEngine
from finetune_api.preference_losses import PreferenceLoss
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.prepare.plan.experts import Mixture, balance_of, mixture_rules
from finetune_trainer.worker.attention import use_segmented
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedTokens
from finetune_trainer.worker.losses.router import with_balance
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan
from tests.support.models import make_qwen3_moe
from tests.support.preferences import pair_row, pairs, plan_of, single_rows

LENGTHS = (17, 5, 30, 9, 17)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_qwen3_moe(tmp_path_factory.mktemp("qwen3_moe"))
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made.config.use_cache = False
    return made


def rows(vocabulary: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    made = [draw.integers(5, vocabulary - 1, length).astype(np.int32) for length in LENGTHS]
    return [{"input_ids": ids, "labels": ids} for ids in made]


def head_of(model: Any) -> Any:
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, engine=PlannedEngine(router_loss=0.01))
    return with_balance(plan, model, task_of(plan).loss(model))


def test_the_loss_of_a_document_is_that_of_transformers_and_documents_add_up_in_every_batch(model: Any) -> None:
    data = rows(model.config.vocab_size)
    expected = 0.0
    for row in data:
        logits = model(input_ids=torch.from_numpy(row["input_ids"])[None].long(), output_router_logits=True)
        one = load_balancing_loss_func(logits.router_logits, 4, 2)
        expected += len(row["input_ids"]) * float(torch.as_tensor(one).detach())
    head = head_of(model)
    padded = head(model, PaddedTokens(0)(data)).balance
    use_segmented(model)
    flat = head(model, FlatTokens()(data)).balance
    alone = sum(float(head(model, FlatTokens()([row])).balance.detach()) for row in data)
    for found in (float(padded.detach()), float(flat.detach()), alone):
        assert found == pytest.approx(expected, rel=1e-5)
    flat.backward()
    routers = [one.grad for name, one in model.named_parameters() if name.endswith("gate.weight")]
    assert all(one is not None and float(one.abs().sum()) > 0 for one in routers)


# peft 0.21 asks transformers 5.23 by an older name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_evaluation_and_recomputed_layers_add_nothing(model: Any) -> None:
    data = rows(model.config.vocab_size)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    head = head_of(adapted)
    with torch.no_grad():
        assert head(adapted, PaddedTokens(0)(data)).balance is None
    plain = head(adapted.train(), PaddedTokens(0)(data))
    adapted.activation_checkpointing_enable({"use_reentrant": False})
    again = head(adapted, PaddedTokens(0)(data))
    assert float(again.balance.detach()) == pytest.approx(float(plain.balance.detach()), rel=1e-6)
    grads = []
    for summed in (plain, again):
        adapted.zero_grad()
        summed.balance.backward()
        grads.append([one.grad.clone() for one in adapted.parameters() if one.grad is not None])
    assert grads[0]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("loss", "reference"), [("sigmoid", "adapter-off"), ("kto", "adapter-off"), ("orpo", "none")])
def test_of_preferences_each_sequence_is_a_document_and_the_reference_adds_nothing(
    loss: str, reference: str, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(make_qwen3_moe(tmp_path), dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (one for one in adapted.parameters() if one.requires_grad):
            weight += 0.5 * torch.randn_like(weight)  # the reference chooses other experts
    given = pairs(3, base.config.vocab_size)
    expected, sides = 0.0, [(one, side) for one in given for side in (one.chosen, one.rejected)]
    for one, side in sides[::2] if loss == "kto" else sides:
        sequence = [*one.prompt, *side]
        logits = adapted(input_ids=torch.tensor([sequence]), output_router_logits=True).router_logits
        expected += len(sequence) * float(torch.as_tensor(load_balancing_loss_func(logits, 4, 2)).detach())
    preference = plan_of(PreferenceLoss(loss), reference)
    plan = make_plan(Task.PREFERENCE, MethodType.LORA, preference=preference, engine=PlannedEngine(router_loss=0.01))
    task = task_of(plan)
    task.set_up(adapted, 0)
    head = with_balance(plan, adapted, task.loss(adapted))
    collate = task.batching(adapted, 0).collate
    batch = collate(single_rows(given) if loss == "kto" else [pair_row(one) for one in given])
    assert float(head(adapted, batch).balance.detach()) == pytest.approx(expected, rel=1e-5)


BALANCED = Mixture(("mlp.experts.down_proj",), balance=0.001, balanced=True)
OFF = Mixture(("mlp.experts.down_proj",), balance=0.001)


@pytest.mark.parametrize(
    ("mixture", "given", "chosen"),
    [(None, None, 0.0), (OFF, None, 0.0), (OFF, 0.02, 0.02), (BALANCED, None, 0.001), (BALANCED, 0.0, 0.0)],
)
def test_the_coefficient_is_the_users_or_that_of_a_configuration_that_turns_the_loss_on(
    mixture: Mixture | None, given: float | None, chosen: float
) -> None:
    assert balance_of(mixture, ChoiceLog({}), Task.CAUSAL_LM, given) == chosen


@pytest.mark.parametrize(
    ("mixture", "packed", "code"),
    [
        (None, False, "NoRouterLoss"),
        (Mixture(("mlp.experts.down_proj",)), False, "NoRouterLoss"),
        (Mixture(("mlp.experts.down_proj",), balance=0.001, flat=False), True, "Conflict"),
    ],
)
def test_a_coefficient_that_has_nothing_to_act_on_is_refused(mixture: Mixture | None, packed: bool, code: str) -> None:
    with pytest.raises(SpecError) as refused:
        balance_of(mixture, ChoiceLog({}), Task.CAUSAL_LM, 0.01, packed=packed)
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == (code, "spec.training.router_aux_loss_coef")


def test_what_peft_cannot_do_for_experts_is_refused_where_they_would_be_adapted() -> None:
    with pytest.raises(SpecError) as refused:
        mixture_rules(OFF, {"lora_dropout": 0.1})
    [problem] = refused.value.problems
    assert (problem.code, problem.field) == ("Conflict", "spec.method.lora.lora_dropout")
    assert mixture_rules(OFF, {"lora_dropout": 0.1, "target_modules": ["q_proj"]}) == {}
