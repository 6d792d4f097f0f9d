"""What GPUs have: memory, dense 16-bit speed, bandwidth; and the GPU that a name of a node's label stands for. Pure.

Figures are those of the makers' data sheets (NVIDIA's product briefs and architecture papers, AMD's data sheets),
without sparsity. Of variants that a name does not tell apart the smaller counts.
"""

import difflib
import re
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: the one people use.
        word: the word by which product names contain it.
        memory: GiB.
        teraflops: dense, in bfloat16 (in float16 where it has no bfloat16).
        bandwidth: of its memory, gigabytes a second.
        link: to other GPUs of the node, gigabytes a second in one direction.
        source: where the figures stand.
    """

    name: str
    word: str
    memory: int
    teraflops: float
    bandwidth: float
    link: float
    source: str
    bfloat16: bool = True

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes; the driver keeps some hundred MiB of it."""
        return self.memory * GIB


PCIE3, PCIE4, PCIE5 = 12.0, 25.0, 50.0  # gigabytes a second in practice, 16 lanes
AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
HOPPER = "NVIDIA H100 Tensor Core GPU data sheet"

GPUS: tuple[Gpu, ...] = (
    Gpu("T4", "t4", 15, 65, 320, PCIE3, "NVIDIA T4 data sheet", bfloat16=False),
    Gpu("V100-16GB", "v100", 16, 125, 900, 130, "NVIDIA V100 data sheet", bfloat16=False),
    Gpu("V100-32GB", "v100", 32, 125, 900, 130, "NVIDIA V100 data sheet", bfloat16=False),
    Gpu("L4", "l4", 23, 121, 300, PCIE4, "NVIDIA L4 data sheet"),
    Gpu("A10", "a10", 23, 125, 600, PCIE4, "NVIDIA A10 data sheet"),
    Gpu("A10G", "a10g", 23, 70, 600, PCIE4, "AWS EC2 G5 page, NVIDIA A10G"),
    Gpu("A30", "a30", 24, 165, 933, PCIE4, "NVIDIA A30 data sheet"),
    Gpu("A40", "a40", 45, 149.7, 696, PCIE4, "NVIDIA A40 data sheet"),
    Gpu("A6000", "a6000", 47, 154.8, 768, PCIE4, "NVIDIA RTX A6000 data sheet"),
    Gpu("RTX-6000-Ada", "6000ada", 47, 364, 960, PCIE4, "NVIDIA RTX 6000 Ada data sheet"),
    Gpu("L40", "l40", 45, 181, 864, PCIE4, "NVIDIA L40 data sheet"),
    Gpu("L40S", "l40s", 45, 362, 864, PCIE4, "NVIDIA L40S data sheet"),
    Gpu("A100-40GB", "a100", 40, 312, 1555, 250, AMPERE),
    Gpu("A100-80GB", "a100", 80, 312, 1935, 250, AMPERE),
    Gpu("H100-80GB", "h100", 80, 989, 3350, 400, HOPPER),
    Gpu("H100-PCIe", "h100pcie", 80, 756, 2000, PCIE5, HOPPER),
    Gpu("H100-NVL", "h100nvl", 94, 835, 3900, 250, HOPPER),
    Gpu("H200-141GB", "h200", 140, 989, 4800, 400, "NVIDIA H200 data sheet"),
    Gpu("GH200-96GB", "gh200", 95, 989, 4000, 400, "NVIDIA GH200 data sheet"),
    Gpu("B200-180GB", "b200", 178, 2250, 7700, 800, "NVIDIA DGX B200 data sheet"),
    Gpu("RTX-3090", "3090", 24, 71, 936, PCIE4, "NVIDIA GA102 architecture paper"),
    Gpu("RTX-4090", "4090", 24, 165, 1008, PCIE4, "NVIDIA Ada architecture paper"),
    Gpu("RTX-5090", "5090", 32, 209, 1792, PCIE5, "NVIDIA RTX Blackwell architecture paper"),
    Gpu("MI210", "mi210", 64, 181, 1638, PCIE4, "AMD Instinct MI210 data sheet"),
    Gpu("MI300X", "mi300x", 192, 1307, 5300, 300, "AMD Instinct MI300X data sheet"),
)
SLICE = re.compile(r"mig|(?<![a-z\d])\d+g[.-]\d+gb")  # a part of a GPU


def find(name: str) -> Gpu | None:
    """The GPU of a product name such as `NVIDIA-A100-SXM4-80GB`, `nvidia-h100-mega-80gb` or `A100`; None if unknown.

    Without a size in the name, the smallest of that kind.
    """
    plain = name.lower()
    if SLICE.search(plain):
        return None
    words = set(re.findall(r"[a-z\d]+", plain))
    joined = re.sub(r"[^a-z\d]", "", plain)
    sizes = {int(size) for size in re.findall(r"(?<!\d)(\d{2,3})g(?:i?b)?(?![a-z\d])", plain)}
    for word in ("h100pcie", "h100nvl", "6000ada"):
        if word in joined:
            words.add(word)
            words -= {"h100"}
    if {"rtx", "6000", "ada"} <= words:
        words.add("6000ada")
    found = [gpu for gpu in GPUS if gpu.word in words]
    if sizes and len(found) > 1:
        found = [gpu for gpu in found if any(abs(gpu.memory - size) <= 2 for size in sizes)]
    return min(found, key=lambda gpu: gpu.memory, default=None)


def similar(name: str) -> list[str]:
    """Names of the table that are like an unknown one; else the most usual."""
    by_plain = {re.sub(r"[^a-z\d]", "", gpu.name.lower()): gpu.name for gpu in GPUS}
    plain = re.sub(r"nvidia|tesla|geforce|amd|instinct|[^a-z\d]", "", name.lower())
    near = difflib.get_close_matches(plain, by_plain, n=2, cutoff=0.5)
    return [by_plain[one] for one in near] or ["L4", "A100-40GB", "A100-80GB", "H100-80GB"]
