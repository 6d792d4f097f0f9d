"""Masked language modelling: hidden tokens of a row are predicted from the others (see `batches.masking`)."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_api.plan import Plan
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.masking import MaskedRows, Masking, masking_of
from finetune_trainer.worker.batches.padded import PaddedTokens
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.tasks.token_task import TokenTask
from finetune_trainer.worker.tasks.worker_task import Batching, Items, Measured


class MaskedLM(TokenTask):
    """Masked language modelling, with tokens hidden anew for each position of the run."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._masking: Masking | None = None

    @property
    def masking(self) -> Masking:
        """Return the masking rule of the tokenizer in use."""
        assert self._masking is not None, "call use_tokenizer first"
        return self._masking

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the mask token and the special tokens."""
        self._masking = masking_of(self.plan, tokenizer)

    def viewed(self, rows: Any, stream: int) -> Any:
        """Return rows with hidden tokens."""
        return MaskedRows(rows, self.masking, stream)

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return padded batches, in which a position predicts its own hidden token."""
        return Batching(PaddedTokens(pad_token_id, shifted=False))

    def items(self, rows: ArrowRows) -> Items:
        """Return the number of hidden tokens, which depends on the row's length alone."""
        return lambda row: self.masking.count(int(rows.lengths[row]))

    def scores(self, measured: Measured) -> Scores:
        """Return loss, perplexity, and the share of the hidden tokens that the model predicts correctly."""
        scores = super().scores(measured)
        if not (measured.hits and measured.items):
            return scores
        return replace(scores, metrics=scores.metrics | {"accuracy": measured.hits / measured.items})


TASK = MaskedLM
