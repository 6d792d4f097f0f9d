"""A real llama.cpp server answers with an exported GGUF file as transformers does."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.contract import Env
from finetune_api.messages import ExportForm, Quantization
from finetune_trainer.export.forms import ExportRequest
from finetune_trainer.serving.serve_records import ServeSettings
from tests.support.llama_server import llama_server
from tests.support.served_run import served_run

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.mark.parametrize("lost", [False, True])
def test_llama_cpp_answers_as_transformers_and_a_lost_end_token_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    monkeypatch.setenv(Env.LLAMA_SERVER, str(llama_server()))
    run = served_run(tmp_path)
    if lost:
        from finetune_trainer.export import artifact_files

        monkeypatch.setattr(artifact_files, "end_answers", lambda *_: None)
    settings = ServeSettings(tokens=12, agreement=0.99)
    request = ExportRequest((ExportForm.GGUF,), quantizations=(Quantization.Q4_0, Quantization.F32), serve=settings)
    serving: Any = run.export(request).serving
    assert serving is not None
    if lost:
        assert (serving.served, serving.reason) == (False, "EndsMissed"), serving.message
    else:
        assert (serving.served, serving.reason) == (True, "SameAnswers"), serving.message
        assert "gguf: llama.cpp" in serving.message
        assert "writes 100.0% of " in serving.message
