"""A further task takes one record and one module: prepare, plan, worker and evaluation read the record."""

import json
import os
import subprocess
import sys
from pathlib import Path

from finetune_trainer.agent.security import worker_environment

ROOT = Path(__file__).parents[2]


def test_a_task_is_one_record_and_one_module(llama: Path, tmp_path: Path) -> None:
    words = [f"the {animal} says {sound}" for animal, sound in (("dog", "woof"), ("cat", "meow"), ("cow", "moo"))]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{number} {words[number % 3]}"}) + "\n" for number in range(64)))
    command = [sys.executable, "-m", "tests.local.toy_task", str(llama), str(rows), str(tmp_path / "storage")]
    environ = {**worker_environment(os.environ), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-3000:]
    seen = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith('{"plan"')))
    assert seen["plan"]["task"] == "last-token"
    assert seen["plan"]["schedule"]["lr_scheduler_type"] == "constant"
    assert seen["events"][0] == {"code": 0}, ran.stderr[-3000:]
    losses = [event["values"]["loss"] for event in seen["events"][1:] if event["event"] == "step"]
    assert abs(losses[0]) < 1e-5, "the model is its own reference at the first step"
    assert losses[-1] < -0.5, losses
    evaluated = [event["values"] for event in seen["events"][1:] if event["event"] == "eval"]
    assert len(evaluated) == 2
    assert evaluated[-1]["eval_loss"] < 0
