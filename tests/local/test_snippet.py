"""The code of a chat model's card asks as training did: by the chat template."""

import shutil
from pathlib import Path

import pytest

from finetune_api.messages import MethodType, Task
from finetune_trainer.export.layout import Base
from finetune_trainer.export.snippet import snippet
from finetune_trainer.prepare.tokens.templates import CHATML
from tests.local.harness import make_plan


def test_a_chat_model_is_asked_by_its_template_and_the_question_is_not_printed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(CHATML)
    monkeypatch.chdir(tmp_path / "model")
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL)
    code = snippet(plan, Base("unused", None, False), chat=True)
    made: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), made)  # noqa: S102 - our own code
    tokenizer, inputs = made["tokenizer"], made["inputs"]
    asked = tokenizer.decode(inputs["input_ids"][0])  # type: ignore[attr-defined,index]
    assert "<|im_start|>" in asked
    assert "Some text." in asked
    assert asked.rstrip().endswith("assistant")
    assert "Some text." not in capsys.readouterr().out
    assert "apply_chat_template" not in snippet(plan, Base("unused", None, False)), "plain text is no chat"
