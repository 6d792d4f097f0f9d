"""A plan whose layout is chosen: what its schedule, its evaluation and its prediction start from. Pure."""

from dataclasses import dataclass, replace

from finetune_api.messages import DatasetFacts, ModelFacts
from finetune_api.plan import Choice
from finetune_api.v1alpha1.spec import FineTuneJobSpec
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.checkpoint_cost import checkpoint_bytes
from finetune_trainer.prepare.plan.machine import Machine, Pace
from finetune_trainer.prepare.plan.rank_layout import RankLayout, Request
from finetune_trainer.prepare.plan.setting import Setting
from finetune_trainer.prepare.plan.speed import step_speed


@dataclass(frozen=True)
class Workload:
    """What is trained, and on what.

    Attributes:
        architecture: the model, counted for the setting of the job.
        dataset: the prepared data; its rows were cut at the limit of the setting.
    """

    model: ModelFacts
    architecture: Architecture
    dataset: DatasetFacts


@dataclass(frozen=True)
class Draft:
    """A job with its layout.

    Attributes:
        request: what the layout had to fulfil.
        choices: the values so far, each with its reason.
    """

    setting: Setting
    workload: Workload
    request: Request
    layout: RankLayout
    choices: tuple[Choice, ...]

    @property
    def spec(self) -> FineTuneJobSpec:
        """The job's spec."""
        return self.setting.job.spec

    @property
    def machine(self) -> Machine:
        """What one rank may use."""
        return self.request.machine

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of the largest node's part of a checkpoint."""
        load = self.layout.load
        width, states = load.architecture.weight_bytes, load.optimizer.state_bytes
        return checkpoint_bytes(load.trained, width, self.machine.nodes, load.zero_stage, states)

    def at_pace(self, pace: Pace | None) -> "Draft":
        """Return the draft with the speed that was measured on this machine; GPUs keep their own."""
        if pace is None or self.machine.gpu is not None:
            return self
        machine = replace(self.machine, pace=pace)
        speed = step_speed(self.layout.load, machine, self.request.mean_tokens)
        return replace(self, request=replace(self.request, machine=machine), layout=replace(self.layout, speed=speed))
