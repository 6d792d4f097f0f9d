"""What one rank holds and does in a step: the question that memory and speed answer. Pure."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.messages import MethodType
from finetune_trainer.prepare.plan.architecture import Architecture, Kept
from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer

MASTER = 4  # bytes of a float32 copy of a weight
ADAMW = ChosenOptimizer()


@dataclass(frozen=True)
class Load:
    """What one rank holds and does.

    Attributes:
        micro: rows per forward pass, of `tokens` each.
        accumulation: micro-batches per step.
        zero_stage: 1 shards optimizer states over the ranks, 2 gradients too, 3 weights too.
        recomputed: whether activations are recomputed in the backward pass.
        chunked: whether the loss makes its logits a chunk at a time, and again in the backward pass.
        evaluated: rows of a batch of the evaluation, or of a reference that is computed once; 0 = there is neither.
        converted: whether the model's files hold its weights in another type than the run's.
        sequences: of a row, each of `tokens`: 2 for a pair of completions; the texts that are compared.
        beside: forward passes without gradients beside each pass that trains.
        optimizer: how gradients become updates.
    """

    architecture: Architecture
    method: MethodType
    zero_stage: int
    world_size: int
    micro: int
    tokens: int
    accumulation: int = 1
    recomputed: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    device: Literal["cpu", "gpu"] = "cpu"
    chunked: bool = False
    evaluated: int = 0
    converted: bool = False
    sequences: int = 1
    beside: int = 0
    optimizer: ChosenOptimizer = ADAMW

    @property
    def logits_bytes(self) -> int:
        """Of all logits of a micro-batch in float32, as if every token were trained."""
        return self.logits_of(self.micro * self.sequences)

    def logits_of(self, rows: int) -> int:
        """Return bytes of all logits of these sequences in float32, as if every token were trained."""
        return 4 * self.architecture.vocabulary * rows * self.tokens if self.architecture.predicts_tokens else 0

    @property
    def kept(self) -> Kept:
        """What the forward pass keeps."""
        return self.architecture.kept[self.method]

    @property
    def trained(self) -> int:
        """Parameters that get gradients."""
        return self.kept.trained + (self.kept.sharded if self.zero_stage == 3 else 0)

    @property
    def active_trained(self) -> int:
        """Of the parameters that get gradients, those that a token passes through."""
        return self.trained - round(self.kept.routed * (1 - self.architecture.share))

    @property
    def parameters(self) -> int:
        """All parameters, the adapter's included."""
        return self.architecture.parameters + (0 if self.method is MethodType.FULL else self.trained)

    def ranks(self, from_stage: int) -> int:
        """Return over how many ranks something is sharded that this ZeRO stage and later ones shard."""
        return self.world_size if self.zero_stage >= from_stage else 1

    @property
    def on_host(self) -> bool:
        """Whether optimizer states lie outside of what is predicted: a CPU has no other memory than its own."""
        return self.offload_optimizer and self.device == "gpu"

    @property
    def copied(self) -> bool:
        """Whether DeepSpeed keeps a float32 copy of the weights: not if they are float32 themselves and not sharded."""
        return self.zero_stage > 0 or self.architecture.weight_bytes < MASTER

    @property
    def master_bytes(self) -> float:
        """Bytes of the optimizer per trained parameter: its states, and a float32 copy of the weights, if there is
        one."""
        return self.optimizer.state_bytes + (MASTER if self.copied else 0)
