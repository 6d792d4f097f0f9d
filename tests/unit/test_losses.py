"""The loss: the same sum and gradients for every head, batch and family; only labelled positions get logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from finetune_api.messages import DatasetFacts, MethodType, ProblemType, SplitFacts, Task
from finetune_trainer.model.families import FAMILIES
from finetune_trainer.prepare.plan.memory import ANSWERED, CHUNK, EVALUATED
from finetune_trainer.probe.shrunk import shrunk
from finetune_trainer.worker.arguments import EVAL_BATCH_FACTOR
from finetune_trainer.worker.attention import segmented_attention, use_segmented
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import IGNORED, PaddedPairs, PaddedTokens
from finetune_trainer.worker.evaluation.answers import BATCH_TOKENS
from finetune_trainer.worker.losses import output_layer
from finetune_trainer.worker.losses.head import RowLoss
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan
from tests.support.matrix import first_families
from tests.support.models import MAKERS, make_mistral
from tests.support.models.configurations import config_of

PAD = 1
AUTO: dict[Task, Any] = {
    Task.CAUSAL_LM: AutoModelForCausalLM,
    Task.MASKED_LM: AutoModelForMaskedLM,
    Task.SEQ2SEQ: AutoModelForSeq2SeqLM,
}


def loaded(family: str, task: Task, folder: Path) -> Any:
    model = AUTO[task].from_pretrained(MAKERS[family](folder / family), dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def rows(vocabulary: int, lengths: tuple[int, ...] = (17, 5, 30, 9, 17, 40, 3)) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    made = [draw.integers(5, vocabulary - 1, length).astype(np.int32) for length in lengths]
    return [{"input_ids": ids, "labels": np.where(np.arange(len(ids)) < len(ids) // 3, IGNORED, ids)} for ids in made]


@pytest.mark.parametrize("family", first_families(name for name, one in FAMILIES.items() if one.flat_batches))
def test_every_family_with_flat_batches_keeps_its_documents_apart(family: str, tmp_path: Path) -> None:
    model = loaded(family, Task.CAUSAL_LM, tmp_path)
    data = rows(model.config.vocab_size)
    head = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).loss(model)
    with torch.no_grad():
        padded = head(model, PaddedTokens(PAD)(data))
        use_segmented(model)
        flat = head(model, FlatTokens()(data))
        alone = sum(float(head(model, FlatTokens()([row])).total) for row in data)
    assert flat.items == padded.items == sum(int((row["labels"][1:] != IGNORED).sum()) for row in data)
    assert float(flat.total) == pytest.approx(float(padded.total), abs=1e-5 * padded.items)
    assert float(flat.total) == pytest.approx(alone, abs=1e-5 * padded.items)
    assert int(flat.hits) == int(padded.hits)  # type: ignore[arg-type]


def test_a_sliding_window_holds_within_documents(tmp_path: Path) -> None:
    folder = make_mistral(tmp_path / "mistral", sliding_window=8)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    data = rows(model.config.vocab_size)
    head = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).loss(model)
    with torch.no_grad():
        padded = head(model, PaddedTokens(PAD)(data))
        use_segmented(model)
        flat = head(model, FlatTokens()(data))
    assert float(flat.total) == pytest.approx(float(padded.total), abs=1e-5 * padded.items)


def test_a_model_that_never_calls_the_attention_is_refused(tmp_path: Path) -> None:
    model = loaded("llama", Task.CAUSAL_LM, tmp_path)  # with transformers' own attention
    head = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).loss(model)
    with pytest.raises(RuntimeError, match="apart"):
        head(model, FlatTokens()(rows(model.config.vocab_size)))


def test_a_family_that_is_not_known_to_keep_documents_apart_gets_padded_batches(tmp_path: Path) -> None:
    model = loaded("gemma2", Task.CAUSAL_LM, tmp_path)  # soft-capped scores: no fused kernel has them
    batching = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).batching(model, PAD)
    assert isinstance(batching.collate, PaddedTokens)
    assert batching.dealt is None


def test_generation_and_padded_batches_are_unaffected_by_the_attention(tmp_path: Path) -> None:
    model = loaded("llama", Task.CAUSAL_LM, tmp_path)
    ids = torch.tensor([[PAD, PAD, 7, 8, 9], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": PAD}
    before = model.generate(ids, **options)
    use_segmented(model)
    assert torch.equal(model.generate(ids, **options), before)


CASES = [("llama", Task.CAUSAL_LM), ("gemma", Task.CAUSAL_LM), ("bert", Task.MASKED_LM), ("distilbert", Task.MASKED_LM)]
CASES += [("modernbert", Task.MASKED_LM), ("t5", Task.SEQ2SEQ), ("bart", Task.SEQ2SEQ)]
# scaled or capped logits, a bias beside the output layer, an output layer within a module
CASES += [("granite", Task.CAUSAL_LM), ("mbart", Task.SEQ2SEQ), ("t5gemma", Task.SEQ2SEQ)]
CASES += [(family, Task.MASKED_LM) for family in ("deberta-v2", "electra", "mpnet", "nomic_bert")]


@pytest.mark.parametrize(("family", "task"), first_families(CASES, also=("granite", "mbart", "t5gemma")))
def test_logits_in_chunks_give_the_loss_and_gradients_of_the_models_own(
    family: str, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(family, task, tmp_path)
    data = rows(model.config.vocab_size)
    collate: Any = PaddedTokens(PAD, shifted=task is Task.CAUSAL_LM)
    if task is Task.SEQ2SEQ:
        collate = PaddedPairs(PAD, lambda labels: model.prepare_decoder_input_ids_from_labels(labels=labels))
    batch = collate(data)
    labels = torch.full(batch.get("decoder_input_ids", batch["input_ids"]).shape, IGNORED)
    shift = 1 if task is Task.CAUSAL_LM else 0
    labels.view(-1)[batch["kept"] + shift] = batch["targets"]

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    inputs = {name: value for name, value in batch.items() if name not in ("kept", "targets")}
    own = model(**inputs, labels=labels).loss
    expected = gradients(own)
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * model.config.vocab_size * 7)
    for kind in ("labelled", "chunked"):
        head = task_of(make_plan(task, MethodType.FULL, loss_head=kind)).loss(model)
        with torch.no_grad():
            assert int(head(model, batch).hits) <= len(batch["targets"])  # type: ignore[arg-type]
        summed = head(model, batch)
        loss = summed.total / summed.items
        assert float(loss.detach()) == pytest.approx(float(own.detach()), abs=1e-5), kind
        found = gradients(loss)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=f"{kind} {name}")
        for hook in list(output_layer.output_layer(model)._forward_pre_hooks):
            del output_layer.output_layer(model)._forward_pre_hooks[hook]


def test_a_model_that_does_more_with_its_logits_than_is_known_gets_them_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Falcon-H1 multiplies them."""
    values = {**shrunk(config_of("falcon_h1")), "lm_head_multiplier": 0.25}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values)).eval()
    batch = PaddedTokens(PAD)(rows(model.config.vocab_size, (17, 5)))
    task = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL, loss_head="labelled"))
    with torch.no_grad():
        expected = task.loss(model)(model, batch)
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * model.config.vocab_size * 7)
    chunked = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL, loss_head="chunked")).loss(model)
    for _ in range(2):
        with torch.no_grad():
            found = chunked(model, batch)
        assert float(found.total) == pytest.approx(float(expected.total), rel=1e-6)
        assert found.hits is not None
    summed = chunked(model, batch)
    summed.total.backward()
    assert model.get_output_embeddings().weight.grad is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21.2 asks for it
@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_on_the_output_layer_is_trained_by_every_head(options: dict[str, Any], tmp_path: Path) -> None:
    batch: dict[str, Any] = {}
    totals: list[torch.Tensor] = []
    for kind in ("labelled", "chunked"):
        torch.manual_seed(1)
        base = loaded("llama", Task.CAUSAL_LM, tmp_path / kind)
        model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **options))
        use_segmented(model)
        batch = FlatTokens()(rows(base.config.vocab_size))
        summed = task_of(make_plan(Task.CAUSAL_LM, MethodType.LORA, loss_head=kind)).loss(model)(model, batch)
        summed.total.backward()
        totals.append(summed.total.detach())
        touched = [name for name, one in model.named_parameters() if one.requires_grad and "lm_head" in name]
        assert touched
        assert all(model.get_parameter(name).grad is not None for name in touched)
    torch.testing.assert_close(totals[0], totals[1])


def test_only_labelled_positions_reach_the_output_layer(tmp_path: Path) -> None:
    model = loaded("llama", Task.CAUSAL_LM, tmp_path)
    use_segmented(model)
    head = task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).loss(model)
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda module, arguments, logits: shapes.append(logits.shape))
    batch = FlatTokens()(rows(model.config.vocab_size))
    head(model, batch)
    assert shapes == [torch.Size([len(batch["targets"]), model.config.vocab_size])]
    assert len(batch["targets"]) < batch["input_ids"].numel()


def test_no_mask_is_built_for_a_flat_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("llama", Task.CAUSAL_LM, tmp_path)
    use_segmented(model)
    masks: list[Any] = []
    from transformers import AttentionInterface

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        masks.append(mask)
        return segmented_attention(module, query, key, value, mask, **kwargs)

    AttentionInterface.register("segmented", watched)
    try:
        task_of(make_plan(Task.CAUSAL_LM, MethodType.FULL)).loss(model)(
            model, FlatTokens()(rows(model.config.vocab_size))
        )
    finally:
        AttentionInterface.register("segmented", segmented_attention)
    assert masks == [None] * model.config.num_hidden_layers


@pytest.mark.parametrize(
    ("problem", "labels", "own"),
    [
        (ProblemType.SINGLE_LABEL, torch.tensor([0, 2]), torch.nn.CrossEntropyLoss()),
        (ProblemType.MULTI_LABEL, torch.tensor([[1.0, 0, 1], [0, 0, 0]]), torch.nn.BCEWithLogitsLoss()),
        (ProblemType.REGRESSION, torch.tensor([0.5, -2.0]), torch.nn.MSELoss()),
    ],
)
def test_a_row_has_the_loss_that_transformers_gives_it(problem: ProblemType, labels: torch.Tensor, own: Any) -> None:
    width = 1 if problem is ProblemType.REGRESSION else 3
    logits = torch.randn(2, width, generator=torch.Generator().manual_seed(0))

    class Answer(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            assert "labels" not in inputs
            return type("Output", (), {"logits": logits})

    summed = RowLoss(problem)(Answer(), {"input_ids": None, "labels": labels})
    expected = own(logits.squeeze(-1) if problem is ProblemType.REGRESSION else logits, labels)
    assert float(summed.total / summed.items) == pytest.approx(float(expected), abs=1e-6)
    assert summed.outputs is not None


def test_the_memory_model_counts_with_the_chunks_of_the_loss_and_the_batches_of_an_evaluation() -> None:
    assert CHUNK == output_layer.CHUNK_BYTES
    assert EVALUATED == EVAL_BATCH_FACTOR
    assert ANSWERED == BATCH_TOKENS


def test_collators_follow_the_problem() -> None:
    split = SplitFacts(rows=4, tokens=8, trained_tokens=4, longest=2)
    data = [
        {"input_ids": np.array([5, 6]), "label": np.array([0, 2])},
        {"input_ids": np.array([7]), "label": np.array([])},
    ]
    facts = DatasetFacts(sha256="0" * 64, train=split, labels=("a", "b", "c"), problem_type=ProblemType.MULTI_LABEL)
    batch = task_of(make_plan(Task.CLASSIFICATION, MethodType.FULL, dataset=facts)).batching(None, PAD).collate(data)
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0]]
    assert batch["input_ids"].tolist() == [[5, 6], [7, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
