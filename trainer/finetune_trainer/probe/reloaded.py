"""The loss of a saved result as anybody computes it: transformers and PEFT load it, and read a row at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import pad
from transformers import AutoTokenizer

from finetune_api.messages import MethodType, ProblemType
from finetune_api.plan import Plan, PlannedEmbedding
from finetune_api.tasks import spec_of
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.arrow_rows import load_split
from finetune_trainer.worker.batches.masking import EVALUATED
from finetune_trainer.worker.batches.padded_texts import content
from finetune_trainer.worker.evaluation.retrieval import evaluated_loss
from finetune_trainer.worker.losses.contrast import pooled
from finetune_trainer.worker.models.heads import auto_class
from finetune_trainer.worker.tasks import task_of


def reloaded_loss(order: WorkerOrder, folder: Path, padding: int = 0) -> float:
    """Return the mean loss over the items of the eval split: trained tokens, labelled words, or rows.

    Args:
        folder: the saved adapter, or the saved model.
        padding: number of padding tokens after each row; for rows with a label.
    """
    plan = order.plan
    spec, auto = spec_of(plan.task), auto_class(plan.task)
    options: dict[str, Any] = {}
    if spec.named:
        options = {"num_labels": len(plan.dataset.labels)}
    if spec.labelled:
        options["problem_type"] = str(ProblemType.SINGLE_LABEL)
    if plan.method is MethodType.FULL:
        model: Any = auto.from_pretrained(folder)
    else:
        model = PeftModel.from_pretrained(auto.from_pretrained(order.model, **options), str(folder))
    model.eval()
    task = task_of(plan)
    tokenizer = AutoTokenizer.from_pretrained(order.model)
    task.use_tokenizer(tokenizer)
    rows = task.viewed(load_split(order, "eval"), EVALUATED)
    if spec.compares:
        return _compared_loss(plan, model, rows)
    total = items = 0.0
    for at in range(len(rows)):
        row = rows[at]
        labels = torch.as_tensor(row["label"] if spec.labelled else row["labels"], dtype=torch.int64)[None]
        count = 1 if spec.labelled else int((labels[:, int(spec.continues) :] != -100).sum())
        with torch.no_grad():
            ids = torch.as_tensor(row["input_ids"], dtype=torch.int64)[None]
            mask = pad(torch.ones_like(ids), (0, padding))
            ids = pad(ids, (0, padding), value=int(tokenizer.pad_token_id))
            total += float(model(input_ids=ids, attention_mask=mask, labels=labels).loss) * count
        items += count
    return total / items


def _compared_loss(plan: Plan, model: Any, rows: Any) -> float:
    """Return the mean loss of an anchor, from vectors that are made of one text at a time."""
    planned = plan.embedding or PlannedEmbedding()
    vectors, hashes = [], []
    for at in range(len(rows)):
        texts = np.split(rows[at]["input_ids"], np.cumsum(rows[at]["seq_lengths"])[:-1])
        hashes.append([content(ids) for ids in texts])
        with torch.no_grad():
            hidden = [model(input_ids=torch.as_tensor(ids, dtype=torch.int64)[None])[0] for ids in texts]
        vectors.append([pooled(one, torch.ones(one.shape[:2]).long(), planned.pooling)[0].numpy() for one in hidden])
    together = plan.layout.micro_batch * plan.world_size
    return evaluated_loss(np.array(vectors), np.array(hashes), planned.scale, planned.dims, together)
