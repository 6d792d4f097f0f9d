"""Exported artifacts, loaded as any user would: plain transformers and peft in a separate process without our code."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_api.messages import MethodType, ProblemType, Task
from finetune_api.plan import Plan

LOSS = """
import sys
import pyarrow as pa, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, rows, *adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter[0])
AutoTokenizer.from_pretrained(adapter[0] if adapter else folder)
model.eval()
total = tokens = 0
with torch.no_grad():
    for row in pa.ipc.open_file(rows).read_all().to_pylist():
        labels = torch.tensor([row["labels"]])
        count = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss) * count
        tokens += count
print(total / tokens)
"""

ACCURACY = """
import json, sys
import pyarrow as pa, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base, rows, adapter = sys.argv[1:]
labels = json.load(open(f"{adapter}/labels.json"))
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(labels))
model = PeftModel.from_pretrained(model, adapter).eval()
right = total = 0
for row in pa.ipc.open_file(rows).read_all().to_pylist():
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
    right += int(logits.argmax()) == row["label"]
    total += 1
print(right / total)
"""


LOSSES = Path(__file__).with_name("vanilla_loss.py")
AUTOS = {
    Task.CAUSAL_LM: "AutoModelForCausalLM",
    Task.CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.SEQ2SEQ: "AutoModelForSeq2SeqLM",
    Task.MASKED_LM: "AutoModelForMaskedLM",
    Task.EMBEDDING: "AutoModel",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
}


@dataclass(frozen=True)
class Artifact:
    """An exported artifact; `options` are those of its card for the base of an adapter."""

    auto: str
    folder: str
    options: dict[str, Any]

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> "Artifact":
        options: dict[str, Any] = {}
        if plan.task is Task.CLASSIFICATION and plan.method is not MethodType.FULL:
            problem = plan.dataset.problem_type or ProblemType.SINGLE_LABEL
            options = {"num_labels": len(plan.dataset.labels) or 1, "problem_type": str(problem)}
        elif plan.method is not MethodType.FULL and plan.dataset.labels:
            options = {"num_labels": len(plan.dataset.labels)}
        return cls(AUTOS[plan.task], str(folder), options)


class Vanilla:
    """A process with plain transformers and peft that loads artifacts one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(LOSSES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def loss(self, artifact: Artifact, rows: Path) -> float:
        """Return the mean loss over the items of a prepared split (trained tokens, or rows), a row at a time.

        Raises:
            AssertionError: the libraries cannot load or run the artifact.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**asdict(artifact), "rows": str(rows)}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"loss"') or line.startswith('{"error"'):
                answer = json.loads(line)
                assert "loss" in answer, answer["error"]
                return float(answer["loss"])
        raise AssertionError("the process with vanilla libraries ended")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def token_loss(model: Path, rows: Path, adapter: Path | None = None) -> float:
    """Return the mean loss per trained token of a causal language model over a prepared split."""
    return _printed(LOSS, model, rows, *([adapter] if adapter else []))


def accuracy(base: Path, rows: Path, adapter: Path) -> float:
    """Return the share of rows of a prepared split that a classification adapter predicts correctly."""
    return _printed(ACCURACY, base, rows, adapter)


def _printed(program: str, *arguments: Path) -> float:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
