"""Encoder-decoders: a target sequence is predicted from an input."""

from typing import Any

from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import PaddedPairs, shifted_right
from finetune_trainer.worker.evaluation.questions import Question, first_questions
from finetune_trainer.worker.tasks.token_task import TokenTask, trained_targets
from finetune_trainer.worker.tasks.worker_task import Batching, Items, indexed_items


class Seq2Seq(TokenTask):
    """Sequence to sequence, with padded pairs. The decoder reads the target shifted by the model's own method,
    or by ours where the model has none."""

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return batches of padded inputs and targets."""
        if shift := getattr(model, "prepare_decoder_input_ids_from_labels", None):
            return Batching(PaddedPairs(pad_token_id, lambda labels: shift(labels=labels)))
        start = int(model.config.decoder_start_token_id)  # M2M100, NLLB and others lack the method
        return Batching(PaddedPairs(pad_token_id, lambda labels: shifted_right(labels, start, pad_token_id)))

    def items(self, rows: ArrowRows) -> Items:
        """Return the number of tokens of the target."""
        return indexed_items(rows.items) or (lambda row: trained_targets(rows.value("labels", row)))

    def questions(self, rows: Any, most: int) -> list[Question]:
        """Return the inputs, each with its target as the reference."""
        return first_questions(rows, most, Question)


TASK = Seq2Seq
