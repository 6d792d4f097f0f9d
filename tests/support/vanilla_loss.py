"""The loss of an artifact over a prepared split, with plain transformers and peft and none of our code.

As a program: a JSON object a line on stdin (the arguments of `loss_of`), a JSON object a line on stdout.
"""

import json
import sys
from typing import Any

import pyarrow as pa
import torch
import transformers
from peft import PeftModel


def loss_of(auto: str, folder: str, options: dict[str, Any], rows: str, device: str = "cpu") -> float:
    """Return the mean loss over the items of a split: trained tokens, or rows for classification. A row at a time.

    Args:
        auto: name of the Auto class that loads it.
        folder: the artifact: a model, or an adapter whose configuration names its base.
        options: further arguments for loading the base of an adapter.
        rows: an Arrow file that prepare wrote.
    """
    loader = getattr(transformers, auto)
    try:
        with open(f"{folder}/adapter_config.json") as file:  # noqa: PTH123
            base = json.load(file)["base_model_name_or_path"]
        model = PeftModel.from_pretrained(loader.from_pretrained(base, **options), folder)
    except FileNotFoundError:
        model = loader.from_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder)
    model.eval().to(device)
    if loader is transformers.AutoModel:
        return compared(model, folder, pa.ipc.open_file(rows).read_all().to_pylist(), device)
    shifted = loader is transformers.AutoModelForCausalLM
    total = items = 0
    for row in pa.ipc.open_file(rows).read_all().to_pylist():
        ids = torch.tensor([row["input_ids"]])
        if "labels" in row:
            labels = torch.tensor([row["labels"]])
            count = int((labels[:, int(shifted) :] != -100).sum())
        else:
            count, label, kind = 1, row["label"], model.config.problem_type
            if kind == "multi_label_classification":
                label = [float(index in label) for index in range(model.config.num_labels)]
            labels = torch.tensor([label])
        with torch.no_grad():
            total += float(model(input_ids=ids.to(device), labels=labels.to(device)).loss) * count
        items += count
    return total / items


def compared(model: Any, folder: str, rows: list[Any], device: str) -> float:
    """Return the mean loss of the anchors, each against the texts of the 8 rows or so around it.

    The artifact's own files name the pooling. No two texts of the rows are equal.
    """
    with open(f"{folder}/1_Pooling/config.json") as file:  # noqa: PTH123
        pooling = json.load(file)
    vectors = []
    for row in rows:
        own, start = [], 0
        for length in row["seq_lengths"]:
            ids = torch.tensor([row["input_ids"][start : start + length]]).to(device)
            start += length
            with torch.no_grad():
                hidden = model(input_ids=ids).last_hidden_state[0]
            own.append(hidden[-1] if pooling["pooling_mode_lasttoken"] else hidden.mean(0))
        vectors.append(torch.nn.functional.normalize(torch.stack(own), dim=-1).cpu())
    groups = -(-len(rows) // 8)
    sizes = [len(rows) // groups + (number < len(rows) % groups) for number in range(groups)]
    total = 0.0
    for size in sizes:
        part, vectors = vectors[:size], vectors[size:]
        choices = torch.cat([torch.stack([own[1] for own in part]), *[own[2:] for own in part]])
        scores = 20 * torch.stack([own[0] for own in part]) @ choices.T
        total += float(torch.nn.functional.cross_entropy(scores, torch.arange(size), reduction="sum"))
    return total / len(rows)


def main() -> None:
    """Answer every line of stdin."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"loss": loss_of(**json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
