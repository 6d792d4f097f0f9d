"""A model's sizes, and what a training step keeps, counted by building it on the meta device: no weight is loaded.

The only file of the plan that imports torch, transformers and PEFT, inside its functions. The forward pass runs on meta
tensors (shapes without data) and torch's own hooks say what autograd keeps, so that every family that transformers can
build is counted by its own code, adapters and dropout included, and no coefficient has to be known.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.messages import MethodType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.model.families import positions_of
from finetune_trainer.model.mixture import experts_of_a_token, number_of_experts, odd_linears, stacked_weights
from finetune_trainer.prepare.plan import adapt
from finetune_trainer.prepare.plan.architecture import Architecture, Growth, Kept, Part, PartKind
from finetune_trainer.prepare.plan.built import build, quiet

if TYPE_CHECKING:
    import torch

LENGTHS = (128, 256)  # two points make a line and a parabola
ROWS = 2
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|fc\d|dense|intermediate|output|expert|gate|lin\d", re.IGNORECASE)


def architecture_of(
    config: Mapping[str, Any],
    task: Task,
    lora: Mapping[str, Any] | None = None,
    weight_bytes: int = 4,
    device: Literal["cpu", "gpu"] = "cpu",
    labels: int = 2,
    freeze: Sequence[str] = (),
    new_tokens: int = 0,
    saved: Mapping[str, tuple[int, ...]] | None = None,
) -> Architecture:
    """Count a model from its `config.json`.

    Args:
        lora: LoraConfig names and values; None = the plan's defaults.
        weight_bytes: 4 for float32, 2 for bfloat16.
        labels: classes of a classification head.
        freeze: regular expressions of parameters that full fine-tuning leaves alone.
        new_tokens: tokens that the vocabulary grows by.
        saved: shapes of the tensors of the adapter to start from, by name.

    Raises:
        ModelError: transformers cannot build this model for the task, or the adapter is another model's.
        SpecError: it has no modules or parameters of the names that the method has.
    """
    import torch

    dtype = torch.bfloat16 if weight_bytes == 2 else torch.float32
    with quiet():
        model = build(config, task, dtype, labels)
        if new_tokens:
            model.resize_token_embeddings(int(model.config.get_text_config().vocab_size) + new_tokens, None, False)
        parts, holders = tuple(_parts(model)), tuple(stacked_weights(model))
        experts, chosen = (number_of_experts(model), experts_of_a_token(model)) if holders else (0, 0)
        sizes = model.config.get_text_config()
        adapt.freeze_parameters(model, freeze, new_tokens)
        kept = {MethodType.FULL: _kept(model, task, dtype, device, holders)}
        linear, odd = [part.name for part in parts if part.inputs], odd_linears(model) if holders else []
        lora = lora or {"r": 16, "target_modules": "all-linear", **({"exclude_modules": odd} if odd else {})}
        if not saved:
            adapt.check_module_names(model, lora, linear)
        adapted = _checked(adapt.adapted(model, task, lora, linear, new_tokens), saved or {}, odd)
        beside = _kept(adapted, task, dtype, device, holders)
        whole = adapt.embeddings(adapted) if new_tokens else 0
        kept[MethodType.LORA] = kept[MethodType.QLORA] = beside.model_copy(update={"sharded": whole})
    return Architecture(
        model_type=str(config["model_type"]),
        hidden=int(sizes.hidden_size),
        layers=len(_layers(model)) or int(getattr(sizes, "num_hidden_layers", 1)),
        heads=int(getattr(sizes, "num_attention_heads", 0) or 0),
        vocabulary=int(sizes.vocab_size),
        predicts_tokens=spec_of(task).predicts_tokens,
        parts=parts,
        weight_bytes=weight_bytes,
        kept=kept,
        experts=experts,
        chosen=chosen,
        blocks=bool(_layers(model)),
        recomputes=_recomputes(model),
    )


def _checked(adapted: Any, saved: Mapping[str, tuple[int, ...]], odd: Sequence[str]) -> Any:
    """Return a model with an adapter that fits the saved one, and whose routers can be adapted."""
    adapt.check_saved(adapted, saved)
    adapt.check_routers(adapted, odd)
    return adapted


def _parts(model: Any) -> Iterator[Part]:
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    base = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
    inside = {id(module) for module in base.modules()} if base is not None else set()
    stacked = {name: sum(one.numel() for one in own.values()) for name, own in stacked_weights(model).items()}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [parameter for _, parameter in module.named_parameters(recurse=False)]
        if not own:
            continue
        new = sum(one.numel() for one in own if id(one) not in seen)
        seen.update(id(one) for one in own)
        inputs = outputs = 0
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
        elif isinstance(module, torch.nn.Linear):
            inputs, outputs = module.in_features, module.out_features
        outer = base is not None and base is not model and id(module) not in inside
        kind = PartKind.HEAD if module is head or (outer and module is not base) else _kind(name, module)
        yield Part(name=name, kind=kind, parameters=new, inputs=inputs, outputs=outputs, stacked=stacked.get(name, 0))


def _kind(name: str, module: Any) -> PartKind:
    import torch

    if isinstance(module, torch.nn.Embedding) or "embed" in name.rpartition(".")[2]:  # ELECTRA's embeddings_project
        return PartKind.EMBEDDING
    if "norm" in type(module).__name__.lower() or "ln_" in name:
        return PartKind.NORM
    if ATTENTION.search(name):
        return PartKind.ATTENTION
    return PartKind.MLP if MLP.search(name) else PartKind.OTHER


def _layers(model: Any) -> list[Any]:
    """Return the blocks that recompute their activations as one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _recomputes(model: Any) -> bool:
    """Return whether `gradient_checkpointing_enable` takes the model (transformers 5.23)."""
    marked = any(hasattr(module, "gradient_checkpointing") for module in model.modules())
    return marked and bool(model.supports_gradient_checkpointing)


# ---------------------------------------------------------------- what autograd keeps


@dataclass
class _Record:
    """Bytes kept, by the layer that keeps them; -1 = outside of all. `head`: of these, as wide as the vocabulary.
    `merged`: weights of experts with their adapters added, by layer; not among the others, since no token adds to them.
    """

    bytes: dict[int, int] = field(default_factory=dict)
    merged: dict[int, int] = field(default_factory=dict)
    head: int = 0
    inside: list[int] = field(default_factory=list)

    def add(self, size: int, *, merged: bool = False) -> None:
        at = self.inside[-1] if self.inside else -1
        kept = self.merged if merged else self.bytes
        kept[at] = kept.get(at, 0) + size


def _kept(model: Any, task: Task, dtype: "torch.dtype", device: str, holders: Sequence[str]) -> Kept:
    """Count what a step keeps.

    Args:
        holders: names of the modules that hold experts, before an adapter wrapped them.
    """
    limit = positions_of(model.config.to_dict()) or LENGTHS[1]
    lengths = LENGTHS if limit >= LENGTHS[1] else (limit // 2, limit)
    records = _counted(model, task, lengths, device, dtype)
    layers = len(_layers(model))
    rest = [record.bytes.get(-1, 0) / ROWS for record in records]
    inner = [{at: size / ROWS for at, size in record.bytes.items() if at >= 0} for record in records]
    largest = max(inner[1], key=lambda at: inner[1][at], default=None)
    hidden = int(model.config.get_text_config().hidden_size)
    trained = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    return Kept(
        trained=sum(trained.values()),
        routed=sum(size for name, size in trained.items() if any(f"{one}." in name for one in holders)),
        folded=adapt.folded(model),
        merged=sum(records[1].merged.values()),
        largest_merged=max(records[1].merged.values(), default=0),
        layers=_growth(lengths, sum(inner[0].values()), sum(inner[1].values())),
        largest_layer=_growth(lengths, inner[0].get(largest, 0), inner[1][largest])
        if largest is not None
        else Growth(),
        rest=_growth(lengths, *rest),
        head=_growth(lengths, *(record.head / ROWS for record in records)),
        inputs=Growth(linear=layers * hidden * dtype.itemsize),
    )


def _growth(lengths: tuple[int, int], short: float, long: float) -> Growth:
    first, second = lengths
    quadratic = max(0.0, (long - short * second / first) / (second * second - first * second))
    return Growth(linear=(long - quadratic * second * second) / second, quadratic=quadratic)


def _counted(model: Any, task: Task, lengths: tuple[int, int], device: str, dtype: "torch.dtype") -> list[_Record]:
    import torch

    def masks(tokens: int) -> list[dict[str, Any]]:
        # as of padded rows; one of two dimensions would be looked at, and meta tensors hold nothing to see
        padded = torch.ones(ROWS, 1, tokens, tokens, dtype=torch.bool, device="meta")
        return [{"attention_mask": padded}, {"attention_mask": padded, "decoder_attention_mask": padded}, {}]

    for way in range(len(masks(1))):
        with contextlib.suppress(RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
            return [_trace(model, task, tokens, device, masks(tokens)[way]) for tokens in lengths]
    return [_paper(model, tokens, dtype.itemsize) for tokens in lengths]


def _trace(model: Any, task: Task, tokens: int, device: str, masks: Mapping[str, Any]) -> _Record:
    """Run the forward pass on meta tensors and note what is kept.

    An encoder-decoder is counted with targets as long as its inputs: too much where they are shorter, as in summaries.
    Its classifier looks for ends of text among the tokens, of which there are none, and is left out.
    """
    import torch

    record = _Record()
    merged = {(one.dim(), one.numel() * one.itemsize) for one in adapt.adapted_parameters(model)}
    seen = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    alive: list[Any] = []  # an address would be used again
    vocabulary = int(model.config.get_text_config().vocab_size)

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(tensor)
            record.add(storage.nbytes(), merged=(tensor.dim(), storage.nbytes()) in merged)
            if not record.inside and tensor.dim() > 1 and tensor.shape[-1] == vocabulary and tensor.is_floating_point():
                record.head += storage.nbytes()
        return tensor

    ids = torch.ones(ROWS, tokens, dtype=torch.int64, device="meta")
    called, given = model, {"labels": ids[:, 0] if spec_of(task).labelled else ids}
    if spec_of(task).compares:  # the bare model has no loss
        given = {}
    if spec_of(task).labelled and model.config.is_encoder_decoder:
        called, given = model.base_model, {"decoder_input_ids": ids}
    with contextlib.ExitStack() as stack:
        for at, layer in enumerate(_layers(model)):
            stack.callback(layer.register_forward_pre_hook(_enter(record, at)).remove)
            stack.callback(layer.register_forward_hook(_leave(record)).remove)
        stack.enter_context(_kernels(device))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        called(input_ids=ids, **masks, **given)
    return record


def _paper(model: Any, tokens: int, itemsize: int) -> _Record:
    """Return what Korthikanti et al. 2022 (arXiv 2205.05198), equation 1, count for a layer: 34sbh + 5abs^2."""
    sizes = model.config.get_text_config()
    hidden, heads = int(sizes.hidden_size), int(getattr(sizes, "num_attention_heads", 0) or 0)
    layer = ROWS * (34 * tokens * hidden + 5 * heads * tokens * tokens) * itemsize // 2
    head = ROWS * tokens * int(sizes.vocab_size) * 4
    count = len(_layers(model)) or int(getattr(sizes, "num_hidden_layers", 1))
    return _Record({-1: head, **dict.fromkeys(range(count), layer)}, head=head)


def _enter(record: _Record, at: int) -> Callable[..., None]:
    return lambda *_: record.inside.append(at)


def _leave(record: _Record) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        record.inside.pop()

    return leave


@contextlib.contextmanager
def _kernels(device: str) -> Iterator[None]:
    """Let attention and dropout keep what the kernels of the real device keep, not what their meta stand-ins keep."""
    import torch

    functional: Any = torch.nn.functional
    real = functional.scaled_dot_product_attention, functional.dropout, functional.grouped_mm
    library: Any = torch
    autocast = library.autocast
    library.autocast = _no_autocast  # PEFT (0.21) turns it off around adapters of experts; meta has none
    functional.scaled_dot_product_attention = _attention(device)
    functional.grouped_mm = _grouped()
    if device == "gpu":
        functional.dropout = _dropout()
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, functional.dropout, functional.grouped_mm = real
        library.autocast = autocast


def _no_autocast(*_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _attention(device: str) -> Callable[..., Any]:
    """Return attention in one kernel: it keeps query, key, value, output and a float32 per token and head, on CPU and
    GPU alike (FlashAttention, arXiv 2205.14135)."""
    import torch

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
            rows, heads, tokens = query.shape[:-1]
            output = query.new_empty(rows, tokens, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out
            sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
            if mask is not None and mask.dtype is torch.bool:
                mask = mask.to(query.dtype)  # each call makes its own
            ctx.save_for_backward(query, key, value, output, sums, *([] if mask is None else [mask]))
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError

    def attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        enable_gqa: bool = False,
        **_: Any,
    ) -> Any:
        uneven = query.shape[-1] != value.shape[-1]  # DeepSeek's low-rank attention
        shared = query.shape[1] != key.shape[1] and not enable_gqa  # Falcon's one key for all heads; no kernel has it
        if shared or (device == "cpu" and (dropout_p > 0 or uneven)):  # scores are held, squared in the length
            plain = torch.ops.aten._scaled_dot_product_attention_math
            return plain(query, key, value, attn_mask, dropout_p, is_causal and attn_mask is None)[0]
        return Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]

    return attention


def _grouped() -> Callable[..., Any]:
    """Return the product of the rows of each expert with its weights. torch's own (2.13) takes float32 on every device
    but meta."""
    import torch

    class Grouped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Any, weights: Any) -> Any:
            ctx.save_for_backward(rows, weights)
            return rows.new_empty(rows.shape[0], weights.shape[-1])

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError

    def grouped(rows: Any, weights: Any, **_: Any) -> Any:
        return Grouped.apply(rows, weights)  # type: ignore[no-untyped-call]

    return grouped


def _dropout() -> Callable[..., Any]:
    """Return dropout that keeps its mask: a byte a number, as on a GPU; a CPU keeps a number of the input's type."""
    import torch

    class Dropout(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, values: Any) -> Any:
            ctx.save_for_backward(torch.empty_like(values, dtype=torch.bool))
            return torch.empty_like(values)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError

    def dropout(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        return Dropout.apply(values) if training and p > 0 else values  # type: ignore[no-untyped-call]

    return dropout
