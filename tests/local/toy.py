"""The worker's side of a toy task: the last token of a row is predicted, better than a reference model does."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import padded_inputs
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.losses.head import Batch, Head, Summed
from finetune_trainer.worker.tasks.worker_task import NO_MODELS, Batching, Items, Measured, WorkerTask


class LastToken(WorkerTask):
    def further_models(self, folder: Path, dtype: torch.dtype) -> Mapping[str, torch.nn.Module]:
        return {"reference": AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)}

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        def collate(rows: Any) -> dict[str, Any]:
            rows = [copy.copy(row) for row in rows]
            last = torch.tensor([int(row["input_ids"][-1]) for row in rows])
            for row in rows:
                row["input_ids"] = row["input_ids"][:-1]
            ids, mask = padded_inputs(rows, pad_token_id)
            return {"input_ids": torch.from_numpy(ids), "attention_mask": mask, "targets": last}

        return Batching(collate)

    def items(self, rows: ArrowRows) -> Items:
        return lambda row: 1

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        def loss(engine: torch.nn.Module, batch: Batch) -> Summed:
            with torch.no_grad():
                reference = surprise(further["reference"], batch)
            return Summed(surprise(engine, batch) - reference, len(batch["targets"]))

        return loss

    def scores(self, measured: Measured) -> Scores:
        return Scores({"loss": measured.loss})


def surprise(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    last = batch["attention_mask"].sum(1) - 1
    return cross_entropy(logits[torch.arange(len(last)), last].float(), batch["targets"], reduction="sum")


TASK = LastToken
