"""Conversations as a user has them, through `finetune run`: a folder of files, packed, with a template of their own."""

import gzip
import json
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

from finetune_api.contract import File
from finetune_trainer.prepare.quality.report import QualityReport
from tests.local.test_run import Job

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def conversation(number: int) -> dict[str, list[dict[str, str]]]:
    """One that packs of 256 tokens hold several of."""
    return {
        "messages": [
            {"role": "user", "content": f"Where is parcel {number}?"},
            {"role": "assistant", "content": f"On day {number * 7 % 29 + 1}, in order {number * 3}."},
        ]
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Its files, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_conversations_is_packed_trained_and_exported_with_its_template(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps(conversation(number)) + "\n" for number in range(240)]
    with gzip.open(data / "a.jsonl.gz", "wt") as file:
        file.writelines(rows[:120])
    (data / "b.jsonl").write_text("".join(rows[120:]))
    (data / "README.md").write_text("# no data")
    job = Job(
        tmp_path,
        {
            "model": {"uri": f"file://{llama}"},
            "dataset": {
                "train": f"file://{data}",
                "eval": {"split": 0.1},
                "chatTemplate": "chatml",
                "packing": True,
            },
            "method": {"type": "lora"},
            "nodes": 2,
            "training": {"max_steps": 4, "global_batch_size": 4, "eval_steps": 2},
            "storage": {"uri": f"file://{tmp_path}/store"},
        },
    )
    assert job.run("--output", str(tmp_path / "out"), "--set", "training.eval_steps=4") == 0, job.output

    run = next((tmp_path / "store/jobs/default/words").glob("*/plan.json")).parent
    dataset = json.loads((run / File.PLAN).read_text())["dataset"]["train"]
    assert (dataset["examples"], dataset["rows"] < dataset["examples"]) == (216, True)
    report = QualityReport.model_validate_json((run / File.DATASET_REPORT).read_text())
    assert report.train.rows == 216
    assert "<html" in (run / File.DATASET_PAGE).read_text()
    assert f"report: file://{run}/{File.DATASET_PAGE}" in (tmp_path / "output.log").read_text().replace("\n", "")

    adapter = run / "artifacts/adapter"
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    asked = tokenizer.apply_chat_template(conversation(1)["messages"][:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    model = AutoPeftModelForCausalLM.from_pretrained(adapter)
    ids = tokenizer(asked, return_tensors="pt").input_ids
    assert model(ids).logits.shape[:2] == ids.shape

    said = (tmp_path / "output.log").read_text()
    assert "set       training.eval_steps = 4 (the file has 2)" in said
    given = tmp_path / "out/adapter"
    assert said.endswith(f"adapter   {given}\n"), "the path comes last, as a shell takes it"
    assert job.result["output"] == str(given)
    assert contents(given) == contents(adapter)
    code = (given / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "apply_chat_template" in code
    monkeypatch.chdir(given)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own card
    assert "<|im_start|>" not in capsys.readouterr().out, "the answer alone"
    samples = [json.loads(line) for line in next((run / "outputs/samples").iterdir()).read_text().splitlines()]
    assert len(samples) == 4, "of the packs' conversations, held out"
    assert all("<|im_start|>assistant" in sample["prompt"] for sample in samples)
    assert all(sample["reference"].startswith("On day ") for sample in samples)
    assert "## Samples" in (adapter / "README.md").read_text()
    assert "chrf" in said
    assert said.count("\nsample ") == 2
