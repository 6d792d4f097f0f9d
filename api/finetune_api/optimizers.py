"""The optimizers of `spec.training.optim`: one record each, under transformers' names. Imports no torch.

ZeRO 1 to 3 steps flat shares of the weights. So an optimizer that treats each number on its own gives the same update
in every layout, and one that looks at whole matrices or tensors does not: it runs only where DeepSpeed knows it (Muon)
or where nothing is sharded (Adafactor, stage 0).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

BITSANDBYTES = "bitsandbytes"
BLOCK = 256  # numbers of an 8-bit state that share a float32 scale (bitsandbytes 0.50)


@dataclass(frozen=True)
class Values:
    """The numbers that an argument may have.

    Attributes:
        rule: in words, after `must be`.
        hold: whether a number is one of them.
    """

    rule: str
    hold: Callable[[float], bool]


SHARE = Values("at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE = Values("above 0", lambda value: 0 < value < float("inf"))
NEGATIVE = Values("below 0", lambda value: -float("inf") < value < 0)


@dataclass(frozen=True)
class Argument:
    """An argument that `spec.training.optim_args` may give.

    Attributes:
        kind: what its text is read as.
        values: the numbers that it may have; those of a truth value do not count.
        state_bytes: bytes per trained parameter that it adds if it is not zero or false.
    """

    kind: type[float] | type[int] | type[bool]
    values: Values = SHARE
    state_bytes: float = 0.0


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer.

    Attributes:
        title: its name in sentences.
        state_bytes: bytes of its states per trained parameter, without the float32 copy of the weights.
        states: what these bytes are.
        copies: float32 copies of the stepped numbers that a step makes on a CPU and on a GPU.
        adam: the fields of `spec.training` that it reads, with the names of its own arguments.
        betas: its own decay rates where the job gives none; empty = those of transformers.
        arguments: what `optim_args` may give, by name.
        rate: its learning rate as a multiple of AdamW's; None = none is published, so the job gives one.
        rate_source: where that factor is from.
        package: what has to be installed; empty = nothing beside torch and transformers.
        cuda: why it needs a GPU; empty = it runs on CPU too.
        whole: why it needs stage 0; empty = it does not.
        sharded: why it needs stage 1, 2 or 3; empty = it does not.
        scheduler: the one schedule of its learning rate, beside a constant one; empty = every schedule.
        divides: why the first of `betas` must not be 0; empty = it may be.
        offloads: whether its states may lie in the node's memory beside a GPU.
        deepspeed: its type in DeepSpeed's configuration; empty = the worker makes it.
    """

    title: str
    state_bytes: float
    states: str
    copies: tuple[int, int]
    adam: Mapping[str, str] = field(default_factory=dict)
    betas: tuple[float, float] | None = None
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    rate: float | None = 1.0
    rate_source: str = "the rate of AdamW"
    package: str = ""
    cuda: str = ""
    whole: str = ""
    sharded: str = ""
    scheduler: str = ""
    divides: str = ""
    offloads: bool = False
    deepspeed: str = ""


BETAS = {"adam_beta1": "betas", "adam_beta2": "betas"}
ADAM = {**BETAS, "adam_epsilon": "eps"}
EPSILON = {"adam_epsilon": "eps"}
TWO_MOMENTS = "two moments"

_LION_RATE = (
    "a fifth of AdamW's rate: three to ten times smaller, with a larger weight_decay (arXiv 2302.06675, section 5)"
)
_EIGHT_BITS_RATE = "AdamW's rate: 8-bit states need no other (arXiv 2110.02861, section 2)"
_PAGED = "its states lie in CUDA's unified memory"


def _eight_bits(states: int) -> float:
    """Return bytes of a number of 8-bit states, with their scales."""
    return states * (1 + 4 / BLOCK)


def _adamw(bits: int, cuda: str = "") -> OptimizerSpec:
    return OptimizerSpec(
        title=f"{'paged ' if cuda else ''}AdamW with states of {bits} bits",
        state_bytes=8 if bits == 32 else _eight_bits(2),
        states=f"{TWO_MOMENTS} of {bits} bits",
        copies=(3, 0),
        adam=ADAM,
        rate_source="the rate of AdamW" if bits == 32 else _EIGHT_BITS_RATE,
        package=BITSANDBYTES,
        cuda=cuda,
    )


def _lion(bits: int, cuda: str = "") -> OptimizerSpec:
    return OptimizerSpec(
        title=f"{'paged ' if cuda else ''}Lion with a state of {bits} bits",
        state_bytes=4 if bits == 32 else _eight_bits(1),
        states=f"one momentum of {bits} bits",
        copies=(2, 0),
        adam=BETAS,
        betas=(0.9, 0.99),  # arXiv 2302.06675, section 4
        rate=0.2,
        rate_source=_LION_RATE,
        package=BITSANDBYTES,
        cuda=cuda,
    )


DEFAULT = "adamw_torch"
OPTIMIZERS: Mapping[str, OptimizerSpec] = {
    DEFAULT: OptimizerSpec("AdamW", 8, TWO_MOMENTS, (2, 1), ADAM, offloads=True),
    "adamw_torch_fused": OptimizerSpec("fused AdamW", 8, TWO_MOMENTS, (0, 0), ADAM, offloads=True),
    "adamw_bnb_8bit": _adamw(8),
    "adamw_8bit": _adamw(8),
    "paged_adamw_32bit": _adamw(32, _PAGED),
    "paged_adamw_8bit": _adamw(8, _PAGED),
    "lion_32bit": _lion(32),
    "lion_8bit": _lion(8),
    "paged_lion_32bit": _lion(32, _PAGED),
    "paged_lion_8bit": _lion(8, _PAGED),
    "adafactor": OptimizerSpec(
        "Adafactor",
        0.1,
        "a number per row and per column of each matrix",
        (2, 2),
        arguments={
            "clip_threshold": Argument(float, POSITIVE),
            "decay_rate": Argument(float, NEGATIVE),
            "beta1": Argument(float, state_bytes=4),
        },
        rate_source="AdamW's rate: an update is clipped to a root mean square of 1 (arXiv 1804.04235, section 6)",
        whole="it keeps sums over rows and columns of whole matrices, and ZeRO gives an optimizer flat shares of them",
    ),
    "sgd": OptimizerSpec(
        "SGD",
        0,
        "no states",
        (1, 1),
        arguments={
            "momentum": Argument(float, state_bytes=4),
            "dampening": Argument(float),
            "nesterov": Argument(bool),
        },
        rate=None,
        offloads=True,
    ),
    "rmsprop": OptimizerSpec(
        "RMSprop",
        4,
        "one mean of squares",
        (2, 1),
        arguments={
            "momentum": Argument(float, state_bytes=4),
            "alpha": Argument(float),
            "eps": Argument(float, POSITIVE),
            "centered": Argument(bool, state_bytes=4),
        },
        rate_source="AdamW's rate: the same division by the root mean square of the gradient",
        offloads=True,
    ),
    "schedule_free_adamw": OptimizerSpec(
        "schedule-free AdamW",
        8,
        "averaged weights and one moment",
        (3, 3),
        ADAM,
        rate_source="AdamW's rate, the least of the 1 to 10 times that its authors recommend (arXiv 2405.15682)",
        sharded="evaluation takes the averaged weights from DeepSpeed's float32 copies, which stage 0 lacks",
        scheduler="constant_with_warmup",
        divides="the averaged weights are those in training divided by it",
    ),
    "muon": OptimizerSpec(
        "Muon",
        8,
        "one momentum of a matrix, two moments of other weights",
        (2, 1),
        ADAM,
        arguments={"momentum": Argument(float)},
        rate_source=(
            "the rate of AdamW; matrices get 0.2 x sqrt(hidden) times it, so that their updates are as large as "
            "AdamW's (Moonlight, arXiv 2502.16982, section 2.2)"
        ),
        deepspeed="Muon",
    ),
}

_PROJECTS = "it projects the gradients of whole matrices, and ZeRO gives an optimizer flat shares of them"
_STEPS_EARLY = "it steps weights within the backward pass, before DeepSpeed has reduced their gradients"
_SMALL = "adamw_bnb_8bit or lion_8bit, or spec.method.type lora"
_EIGHT = "adamw_bnb_8bit"
_ADAMW = "adamw_torch"

# Names of transformers that do not work here: the reason, and what to use.
REFUSED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            "galore_adamw",
            "galore_adamw_8bit",
            "galore_adafactor",
            "galore_adamw_layerwise",
            "galore_adamw_8bit_layerwise",
            "galore_adafactor_layerwise",
            "apollo_adamw",
            "apollo_adamw_layerwise",
        ),
        (_PROJECTS, _SMALL),
    ),
    **dict.fromkeys(("lomo", "adalomo"), (_STEPS_EARLY, _SMALL)),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), ("it needs torchao, which the image lacks", _EIGHT)),
    **dict.fromkeys(
        ("grokadamw", "stable_adamw", "adamw_anyprecision"), ("it needs a package that the image lacks", _ADAMW)
    ),
    **dict.fromkeys(
        ("schedule_free_radam", "schedule_free_sgd"),
        ("its package is not in the image", "schedule_free_adamw"),
    ),
    **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused"), ("it needs other accelerators than GPUs", _ADAMW)),
    **dict.fromkeys(
        ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
        ("its slow momentum averages 10,000 steps (arXiv 2409.03137), more than a fine-tuning run has", _ADAMW),
    ),
    **dict.fromkeys(
        ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), ("it is not tested", "rmsprop or lion_8bit")
    ),
    "adagrad": ("DeepSpeed 0.19 cannot resume it under ZeRO-3", "rmsprop or adamw_torch"),
    "adamw_hf": ("transformers has removed it", _ADAMW),
    "adamw_apex_fused": ("it needs NVIDIA's apex, which the image lacks", "adamw_torch_fused"),
}


def state_bytes(name: str, arguments: Mapping[str, object]) -> float:
    """Return bytes of an optimizer's states per trained parameter, without the float32 copy of the weights.

    Args:
        arguments: what the class of the optimizer gets.
    """
    spec = OPTIMIZERS[name]
    return spec.state_bytes + sum(one.state_bytes for key, one in spec.arguments.items() if arguments.get(key))
