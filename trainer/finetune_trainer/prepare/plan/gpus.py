"""What GPUs have: memory, speed, links; and the GPU of a name in a node's label. Pure.

* memory: MiB as the driver reports them (nvidia-smi, rocm-smi); a data sheet's gigabytes are more than there is.
  modal-labs/modal-client#2797 lists H100, A100, A10, L40S, L4, T4; the others are in public listings of nvidia-smi.
* teraflops: data sheets, dense; what utilisation is reported against.
* matmul: what torch reaches in large products, 16 bits: MEASURED is zzc0721/torch-performance-test-data
  (database.md), which has float32 as well; else four fifths of the data sheet, which measured cards reach, and called
  an estimate.
* network: of a typical instance with 8 GPUs, Gbit a second, by the cloud's own page; without one, 100, an estimate.
* link: inside a node, gigabytes a second of a collective in one direction.

Of variants with the same name the smaller counts.
"""

import difflib
import re
from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: the one people use.
        word: the word by which product names contain it.
        memory_mib: as the driver reports it.
        teraflops: dense, in bfloat16 (in float16 where it has no bfloat16), of the data sheet.
        matmul: teraflops that large products in 16 bits reach.
        float32: the same in float32.
        bandwidth: of its memory, gigabytes a second.
        link: to other GPUs of the node, gigabytes a second in one direction.
        network: of a node of 8 to other nodes, Gbit a second, all its adapters together.
        source: where the figures are from.
    """

    name: str
    word: str
    memory_mib: int
    teraflops: float
    matmul: float
    float32: float
    bandwidth: float
    link: float
    network: float
    source: str
    bfloat16: bool = True

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes, of which the driver keeps some hundred MiB."""
        return self.memory_mib * MIB


# gigabytes a second in practice, 16 lanes. Without peer-to-peer (AWS g4dn, g5, g6; GeForce) every byte goes through the
# node's memory, twice: about a quarter is left (an estimate; NVIDIA/nccl#1298 has traces of a g5.48xlarge).
PCIE4, PCIE5 = 25.0, 50.0
THROUGH_HOST3, THROUGH_HOST4, THROUGH_HOST5 = 3.0, 6.0, 12.0
NVLINK2, NVLINK3, NVLINK4 = 120.0, 200.0, 370.0  # A100: NVIDIA/nccl-tests#149 sees about 200 GB/s of bus bandwidth
MEASURED = "matmul measured"
ESTIMATE = "matmul an estimate"
AWS = "network: AWS EC2"
GUESS = "network an estimate"

GPUS: tuple[Gpu, ...] = (
    # name, word, MiB, data sheet, matmul, float32, GB/s, link, Gbit/s, source
    Gpu("T4", "t4", 15360, 65, 42, 4.3, 320, THROUGH_HOST3, 100, f"T4 data sheet; {MEASURED}; {AWS} g4dn.metal", False),
    Gpu(
        "V100-16GB", "v100", 16384, 125, 89, 13.5, 900, NVLINK2, 100, f"V100 data sheet; {MEASURED}; {AWS} p3dn", False
    ),
    Gpu(
        "V100-32GB", "v100", 32768, 125, 89, 13.5, 900, NVLINK2, 100, f"V100 data sheet; {MEASURED}; {AWS} p3dn", False
    ),
    # 72 W: below its data sheet under load (an estimate); axolotl-ai-cloud/axolotl#1673 finds an A10G "much better"
    Gpu("L4", "l4", 23034, 121, 60, 15, 300, THROUGH_HOST4, 100, f"L4 data sheet; {ESTIMATE}; {AWS} g6.48xlarge"),
    Gpu("A10", "a10", 23028, 125, 70, 20, 600, PCIE4, 100, f"A10 data sheet, 150 W; {ESTIMATE}; {GUESS}"),
    Gpu("A10G", "a10g", 23028, 70, 56, 20, 600, THROUGH_HOST4, 100, f"AWS EC2 G5 page; {ESTIMATE}; {AWS} g5.48xlarge"),
    Gpu("A30", "a30", 24576, 165, 132, 9, 933, PCIE4, 100, f"A30 data sheet; {ESTIMATE}; {GUESS}"),
    Gpu("A40", "a40", 46068, 149.7, 115, 23, 696, PCIE4, 100, f"A40 data sheet; {ESTIMATE}; {GUESS}"),
    Gpu("A6000", "a6000", 49140, 154.8, 123, 24, 768, PCIE4, 100, f"RTX A6000 data sheet; {MEASURED}; {GUESS}"),
    Gpu("RTX-6000-Ada", "6000ada", 49140, 364, 270, 50, 960, PCIE4, 100, f"6000 Ada data sheet; {ESTIMATE}; {GUESS}"),
    Gpu("L40", "l40", 46068, 181, 145, 45, 864, PCIE4, 100, f"L40 data sheet; {ESTIMATE}; {GUESS}"),
    Gpu("L40S", "l40s", 46068, 362, 269, 47, 864, PCIE4, 400, f"L40S data sheet; {MEASURED}; {AWS} g6e.48xlarge"),
    Gpu("A100-40GB", "a100", 40960, 312, 246, 18, 1555, NVLINK3, 400, f"A100 data sheet; {MEASURED}; {AWS} p4d"),
    Gpu("A100-80GB", "a100", 81920, 312, 264, 19, 1935, NVLINK3, 400, f"A100 data sheet; {MEASURED}; {AWS} p4de"),
    Gpu("H100-80GB", "h100", 81559, 989, 787, 52, 3350, NVLINK4, 3200, f"H100 data sheet; {MEASURED}; {AWS} p5"),
    Gpu("H100-PCIe", "h100pcie", 81559, 756, 500, 40, 2000, PCIE5, 100, f"H100 data sheet, 350 W; {ESTIMATE}; {GUESS}"),
    Gpu("H100-NVL", "h100nvl", 95830, 835, 600, 45, 3900, 115, 100, f"H100 data sheet, 400 W; {ESTIMATE}; {GUESS}"),
    Gpu("H200-141GB", "h200", 143771, 989, 790, 51, 4800, NVLINK4, 3200, f"H200 data sheet; {MEASURED}; {AWS} p5en"),
    Gpu("GH200-96GB", "gh200", 97871, 989, 821, 52, 4000, NVLINK4, 400, f"GH200 data sheet; matmul: stas00; {GUESS}"),
    Gpu(
        "B200-180GB", "b200", 183359, 2250, 1696, 66, 7700, 700, 3200, f"DGX B200 data sheet; {MEASURED}; {AWS} p6-b200"
    ),
    Gpu(
        "RTX-3090", "3090", 24576, 71, 76, 24, 936, THROUGH_HOST4, 100, f"GA102 architecture paper; {MEASURED}; {GUESS}"
    ),
    Gpu(
        "RTX-4090",
        "4090",
        24564,
        165,
        165,
        54,
        1008,
        THROUGH_HOST4,
        100,
        f"Ada architecture paper; {MEASURED}; {GUESS}",
    ),
    Gpu("RTX-5090", "5090", 32607, 209, 236, 68, 1792, THROUGH_HOST5, 100, f"Blackwell paper; {MEASURED}; {GUESS}"),
    Gpu("MI210", "mi210", 65520, 181, 140, 22, 1638, PCIE4, 100, f"MI210 data sheet; {ESTIMATE}; {GUESS}"),
    # 620: SemiAnalysis, MI300X vs H100 vs H200, part 1 (December 2024); 782 with ROCm 6.2 by stas00/ml-engineering
    Gpu(
        "MI300X",
        "mi300x",
        196592,
        1307,
        620,
        100,
        5300,
        300,
        3200,
        "MI300X data sheet; SemiAnalysis; Azure ND MI300X",
    ),
)
SLICE = re.compile(r"mig|(?<![a-z\d])\d+g[.-]\d+gb")  # a part of a GPU


def find_gpu(name: str) -> Gpu | None:
    """Return the GPU of a product name such as `NVIDIA-A100-SXM4-80GB` or `nvidia-h100-mega-80gb`; None if unknown.

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
        found = [gpu for gpu in found if any(abs(gpu.memory_mib / 1024 - size) <= 2 for size in sizes)]
    return min(found, key=lambda gpu: gpu.memory_mib, default=None)


def similar(name: str) -> list[str]:
    """Return names of the table that are like an unknown one; else the most usual."""
    by_plain = {re.sub(r"[^a-z\d]", "", gpu.name.lower()): gpu.name for gpu in GPUS}
    plain = re.sub(r"nvidia|tesla|geforce|amd|instinct|[^a-z\d]", "", name.lower())
    near = difflib.get_close_matches(plain, by_plain, n=2, cutoff=0.5)
    return [by_plain[one] for one in near] or ["L4", "A100-40GB", "A100-80GB", "H100-80GB"]
