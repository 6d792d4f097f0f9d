"""A real vLLM serves what the export has made, with the answers of transformers; a wrong artifact is found.

Three starts of vLLM: the adapter beside its base model, the merged model, and one with two faults.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.contract import Env
from finetune_api.messages import ExportForm
from finetune_trainer.export.forms import ExportRequest, FormFiles
from finetune_trainer.export.serve_tested import ServeTester
from finetune_trainer.serving.serve_records import ServeSettings
from tests.local.exported_run import Run
from tests.serve.vllm_environment import vllm_python
from tests.support.served_run import served_run

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SETTINGS = ServeSettings(tokens=12, agreement=0.99)
BOTH = ExportRequest((ExportForm.ADAPTER, ExportForm.MERGED), serve=SETTINGS)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(Env.VLLM, str(vllm_python()))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return served_run(tmp_path)


def spoilt(run: Run, monkeypatch: pytest.MonkeyPatch, form: ExportForm, spoil: Callable[[Path], None]) -> Any:
    """Export a form whose files are changed after transformers has answered: the server gets other ones."""
    ask = ServeTester.ask_server

    def ask_spoilt(self: ServeTester, one: FormFiles, source: Any, folder: Path) -> None:
        spoil(folder)
        ask(self, one, source, folder)

    monkeypatch.setattr(ServeTester, "ask_server", ask_spoilt)
    return run.export(ExportRequest((form,), serve=SETTINGS))


def test_vllm_answers_as_transformers_with_the_adapter_and_with_the_merged_model(run: Run) -> None:
    result = run.export(BOTH)
    assert result.serving is not None
    assert (result.serving.served, result.serving.reason) == (True, "SameAnswers"), result.serving.message
    assert [one.served for one in result.artifacts] == [True, True]
    for form in ("adapter", "merged"):
        text = (run.artifact(form) / "README.md").read_text().split("## Served\n")[1]
        assert "writes 100.0% of " in text
        assert "vLLM 0.32" in text
        assert ", and 99.0% are asked for; 0 of 3" not in text  # at least one answer ends, and the server stopped there


def test_a_missing_end_token_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_the_end(folder: Path) -> None:
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 2}))
        shutil.copyfile(run.base / "tokenizer_config.json", folder / "tokenizer_config.json")

    result = spoilt(run, monkeypatch, ExportForm.ADAPTER, forget_the_end)
    assert result.succeeded
    assert (result.serving.served, result.serving.reason) == (False, "EndsMissed"), result.serving.message
    assert f"goes on after token {run.plan.dataset.ends[0]}, which ends an answer" in result.serving.message


def test_other_weights_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def swap_weights(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        noise = torch.Generator().manual_seed(1)
        changed = {name: one + 0.3 * torch.randn(one.shape, generator=noise) for name, one in weights.items()}
        save_file(changed, file, metadata={"format": "pt"})

    result = spoilt(run, monkeypatch, ExportForm.MERGED, swap_weights)
    assert result.succeeded
    assert (result.serving.served, result.serving.reason) == (False, "OtherAnswers"), result.serving.message
    assert "differs at token" in result.serving.message
