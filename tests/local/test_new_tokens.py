"""New tokens from a job to what vanilla libraries load: one id each, their rows trained wherever a model keeps them."""

import runpy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import tests.support.models
from finetune_api.messages import MethodType, Task
from finetune_trainer.worker.models.load import load_model
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import LABELS, Bench, make_plan
from tests.local.journey import job_of, texts, token_loss, travel
from tests.support.models import make_gpt2

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": "all-linear"}
NEW = ("<|tool|>", "<|call|>")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With tied embeddings, and without dropout."""
    return make_gpt2(tmp_path_factory.mktemp("gpt2"), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


TOKENS = {
    "untied embeddings, ZeRO-2": ("llama", "lora", 2),
    "untied embeddings, ZeRO-3": ("llama", "lora", 3),
    "tied embeddings, ZeRO-2": ("gpt2", "lora", 2),
    "tied embeddings, ZeRO-3": ("gpt2", "lora", 3),
    "all weights, ZeRO-3": ("llama", "full", 3),
    "4 bits": ("llama", "qlora", 2),
}
QUICK = ("untied embeddings, ZeRO-2", "tied embeddings, ZeRO-3", "4 bits")


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")  # as it is, and said in docs
@pytest.mark.parametrize(
    "about", [pytest.param(about, marks=[] if about in QUICK else [pytest.mark.matrix]) for about in TOKENS]
)
def test_new_tokens_are_one_id_each_are_trained_and_travel_with_the_artifact(
    about: str,
    bench: Bench,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    family, method, stage = TOKENS[about]
    base: Path = request.getfixturevalue(family)
    job = job_of(
        base,
        texts(tmp_path),
        tmp_path / "store",
        model={"newTokens": list(NEW)},
        method={"type": method},
        deepspeed={"stage": stage},
    )
    made = travel(job, bench, tmp_path / "job")
    tokenizer: Any = AutoTokenizer.from_pretrained(made.artifact)
    ids = tokenizer.convert_tokens_to_ids(list(NEW))
    known = len(AutoTokenizer.from_pretrained(base))
    assert ids == [known, known + 1]
    [row] = pa.ipc.open_file(pa.memory_map(str(made.dataset / "eval.arrow"))).read_all().to_pylist()[:1]
    assert ids[0] in row["input_ids"]
    assert ids[1] in row["input_ids"]
    assert tokenizer.decode(row["input_ids"]).count("<|tool|>") == 1
    auto: Any = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    model = auto.from_pretrained(made.artifact)
    if method != "qlora":  # on a base in 32 bits the loss is another
        assert token_loss(model, made.dataset / "eval.arrow") == pytest.approx(made.eval_loss, abs=1e-4)
    weights = load_file(next(made.artifact.glob("*.safetensors")))
    rows = [
        one
        for name, one in weights.items()
        if name.endswith(("_delta", "embed_tokens.weight", "wte.weight", "lm_head.weight"))
    ]
    assert len(rows) == (1 if family == "gpt2" and stage == 2 else 2), sorted(weights)
    old: Any = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings()
    moved = [float((one[-2:] - old.weight.detach().mean(0)).abs().max()) for one in rows]
    assert min(moved) > 1e-3, "not trained"
    code = (made.artifact / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(made.artifact)
    (tmp_path / "use.py").write_text(code)
    runpy.run_path(str(tmp_path / "use.py"))
    assert capsys.readouterr().out
    if method == "lora" and stage == 2:
        assert all(len(one) < len(old.weight) for one in weights.values()), "only the new rows are saved"


SHARED: dict[str, tuple[str, Task, Any]] = {
    "an encoder-decoder": ("t5", Task.SEQ2SEQ, AutoPeftModelForSeq2SeqLM),
    "a decoder that classifies": ("qwen3", Task.CLASSIFICATION, AutoPeftModelForSequenceClassification),
    "a masked model, its head tied and with a bias": ("bert", Task.MASKED_LM, None),
    "a head with a bias of its own": ("phi", Task.CAUSAL_LM, AutoPeftModelForCausalLM),
    "embeddings that are scaled": ("gemma", Task.CAUSAL_LM, AutoPeftModelForCausalLM),
}


@pytest.mark.parametrize("about", SHARED)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
def test_the_rows_of_new_tokens_are_trained_wherever_a_model_keeps_them(about: str, tmp_path: Path) -> None:
    family, task, auto = SHARED[about]
    base = getattr(tests.support.models, f"make_{family}")(tmp_path / "base")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    first = len(tokenizer)
    tokenizer.add_tokens(list(NEW))
    plan = make_plan(task, MethodType.LORA, lora=LORA, new_tokens=NEW)
    set_seed(1)
    model: Any = load_model(task_of(plan), base, torch.float32, 0, [first, first + 1])
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    end = tokenizer.eos_token_id or 3
    ids = torch.tensor([[7, first, 8, 9, end], [7, first + 1, 10, 11, end]])  # of unlike meaning: else they stay equal
    labels = torch.tensor([0, 1]) if task is Task.CLASSIFICATION else ids
    for _ in range(2):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        assert not [name for name, one in trained.items() if one.grad is None], "out of the loss's reach"
        optimizer.zero_grad()
    model.eval()
    ids = torch.tensor([[7, first, 8, 9, end], [7, first + 1, 8, 9, end]])
    arguments = {"decoder_input_ids": ids} if task is Task.SEQ2SEQ else {}
    with torch.no_grad():
        logits = model(input_ids=ids, **arguments).logits
        assert not torch.allclose(logits[0], logits[1]), "both tokens mean the same"
        if auto is not None:
            model.save_pretrained(tmp_path / "adapter")
            tokenizer.save_pretrained(tmp_path / "adapter")
            labelled = {"num_labels": len(LABELS)} if task is Task.CLASSIFICATION else {}
            reloaded = auto.from_pretrained(tmp_path / "adapter", **labelled).eval()
            reloaded.config.pad_token_id = reloaded.base_model.model.config.pad_token_id = 0
            torch.testing.assert_close(reloaded(input_ids=ids, **arguments).logits, logits)
