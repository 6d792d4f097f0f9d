"""What we export, used as anybody would: plain transformers and peft in a process of its own, none of our code."""

import subprocess
import sys
from pathlib import Path

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


def token_loss(model: Path, rows: Path, adapter: Path | None = None) -> float:
    """Mean loss per trained token of a causal language model over a prepared split."""
    return _printed(LOSS, model, rows, *([adapter] if adapter else []))


def accuracy(base: Path, rows: Path, adapter: Path) -> float:
    """Share of rows of a prepared split that a classification adapter gets right."""
    return _printed(ACCURACY, base, rows, adapter)


def _printed(program: str, *arguments: Path) -> float:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
