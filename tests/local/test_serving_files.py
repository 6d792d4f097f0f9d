"""Each artifact that vLLM serves has manifests, and its card names them or says why there are none."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_api.messages import ExportForm, MethodType, ModelFacts, Task
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.serving.serving_manifests import KSERVE, VLLM
from tests.local.exported_run import MIRROR, RUN, Run, lora_classifier, scrambled

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BOTH = ExportRequest((ExportForm.ADAPTER, ExportForm.MERGED))
PLAIN: dict[str, Any] = {"r": 20, "target_modules": ["q_proj", "v_proj"]}


def run_of(base: Path, folder: Path, model_type: str, **changes: Any) -> Run:
    source = {"name": "tiny", "commit": "abc", "prefix": MIRROR, "parameters": 1, "size_bytes": 1}
    model = ModelFacts(source="org/tiny", model_type=model_type, **source)
    return Run.of(base, folder, changes.pop("task", Task.CAUSAL_LM), MethodType.LORA, model=model, **changes)


def exported(base: Path, folder: Path, lora: dict[str, Any]) -> Run:
    run = run_of(base, folder, "llama", lora=lora)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **lora))
    run.commit(20, scrambled(model))
    run.export(BOTH)
    return run


def section(run: Run, form: str) -> tuple[str, list[str]]:
    """Return the card's section on servers, and the files of the manifests."""
    folder = run.artifact(form)
    card = (folder / "README.md").read_text()
    files = sorted(path.relative_to(folder).as_posix() for path in folder.glob("serving/*"))
    return card.split("## Serve it\n")[1].split("\n## ")[0], files


def test_each_form_has_manifests_that_the_card_names(llama: Path, tmp_path: Path) -> None:
    run = exported(llama, tmp_path, PLAIN)
    for form in ("adapter", "merged"):
        text, files = section(run, form)
        assert files == [KSERVE, VLLM]
        assert all(f"`{name}`" in text for name in files)
    adapter, merged = section(run, "adapter")[0], section(run, "merged")[0]
    assert (
        "vllm serve org/tiny --revision abc --served-model-name job-base --tokenizer . --generation-config . "
        "--enable-lora --max-lora-rank 32 --lora-modules job=.\n"
    ) in adapter
    assert "vllm serve . --served-model-name job\n" in merged
    run.artifact("adapter")  # the manifests are among the files that MANIFEST.json lists
    service = list(yaml.safe_load_all((run.artifact("adapter") / VLLM).read_text()))[1]
    assert service["metadata"]["name"] == "job"
    assert run.store.head(f"{RUN}artifacts/adapter/{KSERVE}")


def test_a_form_that_vllm_does_not_serve_has_no_manifest_and_the_card_says_why(llama: Path, tmp_path: Path) -> None:
    run = exported(llama, tmp_path, PLAIN | {"use_dora": True})
    text, files = section(run, "adapter")
    assert not files
    assert "it is a DoRA adapter; export merged weights" in text
    assert section(run, "merged")[1] == [KSERVE, VLLM]


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("roberta", "has no head for this task"), ("bert", "takes no adapters for Bert"), ("herbert", "has no model for")],
)
def test_an_adapter_of_a_classifier_or_of_an_unknown_architecture_is_no_promise(
    bert: Path, tmp_path: Path, model_type: str, why: str
) -> None:
    lora = {"r": 4, "modules_to_save": ["classifier"]}
    run = run_of(bert, tmp_path, model_type, task=Task.CLASSIFICATION, lora=lora)
    run.commit(20, lora_classifier(bert))
    run.export()
    text, files = section(run, "adapter")
    assert not files
    assert why in text
