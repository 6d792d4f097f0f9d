"""The energy of a run, as the agents measure it and the record of the run keeps it."""

from pydantic import Field

from finetune_api.messages import Message


class Energy(Message):
    """Energy in joules, as counters have measured it.

    Attributes:
        gpus: of the GPUs that train, by NVML; None = not measured.
        devices: number of these GPUs.
        machine: of the processors of the whole machine, whoever used them, by RAPL; None = not measured.
    """

    gpus: float | None = None
    devices: int = 0
    machine: float | None = None

    def plus(self, other: "Energy") -> "Energy":
        """Return the sum; what neither has measured stays unknown."""
        return Energy(
            gpus=_sum(self.gpus, other.gpus),
            devices=self.devices + other.devices,
            machine=_sum(self.machine, other.machine),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one + (other or 0.0)


class NodeEnergy(Message):
    """The energy of one node since the start of its agent."""

    incarnation: str
    used: Energy


class RunEnergy(Message):
    """The energy of a run over all starts of its agents.

    Attributes:
        ended: of agents that another one has followed.
        nodes: node index -> energy under the agent that was heard last.
    """

    ended: Energy = Energy()
    nodes: dict[int, NodeEnergy] = Field(default_factory=dict)

    def after_beat(self, node: int, incarnation: str, used: Energy) -> "RunEnergy":
        """Return the energy after a node has told what it has used since the start of its agent."""
        before, ended = self.nodes.get(node), self.ended
        if before is not None and before.incarnation != incarnation:
            ended = ended.plus(before.used.model_copy(update={"devices": 0}))  # the new agent counts them
        return RunEnergy(ended=ended, nodes={**self.nodes, node: NodeEnergy(incarnation=incarnation, used=used)})

    @property
    def total(self) -> Energy | None:
        """The energy of all nodes; None if nothing was measured."""
        whole = self.ended
        for one in self.nodes.values():
            whole = whole.plus(one.used)
        return None if whole.gpus is None and whole.machine is None else whole
