"""The machine and the packages that a checkpoint was trained with: the bits of a result depend on them. Workers write
the file, and the lineage of an artifact has its values."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from finetune_api.messages import Message, is_empty

TRAINED_ON = "trained-on.json"  # in each node's part of a checkpoint
CPU = "cpu"


class TrainedOn(Message):
    """The machine of one node.

    Attributes:
        device: name of the GPU, or `cpu`.
        processor: name of the CPU.
        capability: the vector instructions that torch uses, such as AVX512.
        threads: intra-op threads of each rank.
        packages: name -> version of what computes.
        source_files: digest of our source files; empty in a checkpoint of an older version.
    """

    device: str = CPU
    processor: str = ""
    capability: str = ""
    threads: int = 0
    python: str = ""
    packages: dict[str, str] = Field(default_factory=dict)
    source_files: str = Field(default="", exclude_if=is_empty)

    @property
    def on_cpu(self) -> bool:
        """Whether no GPU was used."""
        return self.device == CPU

    def differences(self, other: "TrainedOn") -> list[str]:
        """Return a sentence for each value that differs here, in `other`, and that may change bits."""
        values: list[tuple[str, Any, Any]] = [("device", self.device, other.device)]
        if self.on_cpu and other.on_cpu:  # on a GPU the CPU only prepares rows
            values += [
                ("processor", self.processor, other.processor),
                ("vector instructions", self.capability, other.capability),
                ("threads of a rank", self.threads, other.threads),
            ]
        values += [(name, *pair) for name, pair in _pairs(self.packages, other.packages).items()]
        return [f"{name}: {then} then, {now} here" for name, then, now in values if then != now]


def _pairs(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    names = sorted(then.keys() | now.keys())
    return {name: (then.get(name, "not installed"), now.get(name, "not installed")) for name in names}
