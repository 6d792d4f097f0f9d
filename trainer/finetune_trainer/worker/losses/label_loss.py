"""The cross entropy of labels with their weights and smoothing, which count in training only."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from finetune_api.plan import PlannedLoss

UNCHANGED = PlannedLoss()


@dataclass(frozen=True)
class LabelLoss:
    """The numerator of `torch.nn.CrossEntropyLoss(weight, label_smoothing=...)`.

    Its divisor is the sum of the weights of all targets of a step, on all ranks (see `WorkerTask.items`), so that the
    loss does not depend on the layout. Without gradients it is the plain sum, so that evaluations can be compared.
    """

    planned: PlannedLoss = UNCHANGED

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the sum over logits [items, classes] and targets [items]; float32 scalar."""
        logits = logits.float()
        if not torch.is_grad_enabled():
            return cross_entropy(logits, targets, reduction="sum")
        weights = logits.new_tensor(self.planned.class_weights) if self.planned.class_weights else None
        smoothing = self.planned.label_smoothing
        return cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum")


PLAIN = LabelLoss()
