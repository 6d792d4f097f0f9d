"""The forms of an export: the adapter alone, and the model that it is merged into."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.contract import File, dataset_prefix
from finetune_api.errors import SpecError, StorageError
from finetune_api.messages import DatasetFacts, ExportForm, MethodType, SplitFacts, Task
from finetune_api.v1alpha1 import parse_job
from finetune_trainer.export.evidence.evidence_paths import EVIDENCE
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.storage import read_manifest, upload_tree
from finetune_trainer.worker.compat import save_without_embeddings
from tests.local.exported_run import LABELS, MIRROR, RUN, Run, logits, lora_classifier, same, scrambled
from tests.unit.test_api_parse import job

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BOTH = ExportRequest((ExportForm.ADAPTER, ExportForm.MERGED))
MERGED = ExportRequest((ExportForm.MERGED,))


@pytest.fixture
def classification(bert: Path, tmp_path: Path) -> Run:
    return Run.of(bert, tmp_path, Task.CLASSIFICATION, MethodType.LORA)


def test_a_merged_classifier_needs_transformers_alone_and_knows_its_labels(classification: Run) -> None:
    trained = lora_classifier(classification.base)
    classification.commit(20, trained, eval_loss=0.5)
    adapter, merged = classification.export(BOTH).artifacts
    assert [(one.kind, one.form) for one in (adapter, merged)] == [("adapter", "adapter"), ("model", "merged")]
    folder = classification.artifact("merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    same(logits(loaded, tokenizer), logits(trained, tokenizer))
    assert loaded.config.id2label == dict(enumerate(LABELS))
    card = (folder / "README.md").read_text()
    assert "A LoRA adapter, merged into the base model, after step 20" in card
    assert "PeftModel" not in card
    assert not (folder / "adapter_config.json").exists()


def test_the_card_of_a_merged_model_holds_code_that_runs(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    classification.export(MERGED)
    folder = classification.artifact("merged")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    seen: dict[str, Any] = {}
    exec(code.replace('artifact = "."', f"artifact = {str(folder)!r}"), seen)  # noqa: S102
    assert type(seen["model"]).__name__ == "BertForSequenceClassification"


def test_an_artifact_has_the_hash_of_its_list_of_files_and_its_size(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    [merged] = classification.export(MERGED).artifacts
    raw = classification.store.get(f"{RUN}artifacts/merged/{File.MANIFEST}")
    assert merged.digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    folder = classification.artifact("merged")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != File.MANIFEST]
    assert merged.size_bytes == sum(path.stat().st_size for path in files)


def test_only_what_is_missing_is_made(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    classification.export()
    first = read_manifest(classification.store, f"{RUN}artifacts/adapter/")
    result = classification.export(BOTH)
    assert result.note == "from checkpoint 20, the last one"
    assert "merged: from checkpoint 20, the last one" in classification.reports
    assert read_manifest(classification.store, f"{RUN}artifacts/adapter/") == first
    assert classification.export(BOTH).note == "the adapter and merged of step 20 existed already"
    half = ExportRequest(BOTH.forms, "bfloat16")
    classification.export(half)
    again = read_manifest(classification.store, f"{RUN}artifacts/adapter/")
    assert first is not None
    assert again is not None
    weights, made_again = (
        [one for one in manifest.files if not one.path.startswith(EVIDENCE)] for manifest in (first, again)
    )
    assert made_again == weights
    loaded = AutoModelForSequenceClassification.from_pretrained(classification.artifact("merged"))
    assert loaded.dtype == torch.bfloat16


def test_a_merged_model_has_the_new_tokens_and_ends_its_answers(llama: Path, tmp_path: Path) -> None:
    split = SplitFacts(rows=100, tokens=1000, trained_tokens=100, longest=40)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_tokens(["<|tool|>", "<|end|>"])
    new = [int(one) for one in tokenizer.convert_tokens_to_ids(["<|tool|>", "<|end|>"])]
    data = DatasetFacts(sha256="e" * 64, train=split, ends=(new[1],))
    run = Run.of(llama, tmp_path, Task.CAUSAL_LM, MethodType.LORA, dataset=data, new_tokens=("<|tool|>", "<|end|>"))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    upload_tree(run.store, tmp_path / "tokenizer", dataset_prefix(data.sha256), "dataset")
    base = AutoModelForCausalLM.from_pretrained(llama)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, target_modules="all-linear", trainable_token_indices={"embed_tokens": new, "lm_head": new})
    trained = scrambled(save_without_embeddings(get_peft_model(base, config)))
    run.commit(20, trained)
    [artifact] = run.export(MERGED).artifacts
    folder = run.artifact("merged")
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    kept = AutoTokenizer.from_pretrained(folder)
    assert kept.convert_tokens_to_ids("<|end|>") == new[1]
    assert loaded.config.vocab_size == len(tokenizer)
    ids = torch.tensor([[5, new[0], 7, new[1]]])
    with torch.no_grad():
        same(loaded(input_ids=ids).logits, trained(input_ids=ids).logits)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert new[1] in (ends if isinstance(ends, list) else [ends])
    assert artifact.uri.endswith("artifacts/merged")


def test_a_base_model_that_is_damaged_is_named_and_nothing_is_replaced(classification: Run) -> None:
    classification.commit(20, lora_classifier(classification.base))
    classification.export(MERGED)
    before = read_manifest(classification.store, f"{RUN}artifacts/merged/")
    weights = classification.store.path(f"{MIRROR}model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        classification.export(ExportRequest((ExportForm.MERGED,), "float16"))
    assert read_manifest(classification.store, f"{RUN}artifacts/merged/") == before


REFUSED = [
    ({"forms": ["merged"], "merge": True}, "spec.export.forms"),
    ({"forms": ["onnx"]}, "spec.export.forms[0]"),
    ({"dtype": "int8"}, "spec.export.dtype"),
]


@pytest.mark.parametrize(("export", "field"), REFUSED)
def test_an_export_that_cannot_be_made_is_refused(export: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(job(spec__export=export))
    assert field in [one.field for one in caught.value.problems]


def test_full_fine_tuning_has_no_adapter_to_export() -> None:
    with pytest.raises(SpecError, match="full, which trains no adapter") as caught:
        parse_job(job(spec__method={"type": "full"}, spec__export={"forms": ["adapter"]}))
    [problem] = caught.value.problems
    assert (problem.field, problem.code) == ("spec.export.forms", "NoAdapter")


def test_merge_is_short_for_the_merged_form() -> None:
    spec = parse_job(job(spec__export={"merge": True})).spec
    assert spec.export.wanted(MethodType.LORA) == (ExportForm.MERGED,)
