"""Whether vLLM serves what a job exports, known before it trains. Pure but for its table.

The rules for an adapter are those of vLLM 0.32 (`vllm/lora/peft_helper.py`, `vllm/config/lora.py`); the models are in
`vllm_models.toml`. An older vLLM refuses more: 0.10 ignores rank patterns.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
USUAL_RANK = 16  # its default
SAVED = frozenset({"classifier", "score"})  # whole modules that an adapter may hold


@dataclass(frozen=True)
class Served:
    """Whether vLLM serves an artifact, and why.

    Attributes:
        served: None = vLLM has no model of its own for the architecture; its transformers backend may serve it.
        reason: a sentence, with what to do.
    """

    served: bool | None
    reason: str


def of_adapter(name: str | None, lora: Mapping[str, Any], new_tokens: int = 0) -> Served:
    """Return whether vLLM serves an adapter beside its base model.

    Args:
        name: class of the model in transformers.
        lora: LoraConfig names and values.
    """
    version = _known()["version"]
    obstacles = list(_obstacles(lora, new_tokens))
    if name in _known()["whole"]:
        obstacles.insert(0, f"it takes no adapters for {name}")
    if obstacles:
        whole = of_model(name)
        cure = "export merged weights (spec.export.forms: [merged])" if whole.served else "serve it with transformers"
        return Served(False, f"vLLM {version} does not serve the adapter as it is: {', and '.join(obstacles)}; {cure}")
    if name not in _known()["adapters"]:
        return of_model(name)
    flags = " ".join(adapter_flags(lora, "NAME", "ADAPTER"))
    return Served(True, f"vLLM {version}: vllm serve BASE {flags}")


def adapter_flags(lora: Mapping[str, Any], name: str, folder: str) -> list[str]:
    """Return the options of `vllm serve` for an adapter beside its base model.

    Args:
        lora: LoraConfig names and values, of an adapter that vLLM serves.
        name: of the adapter in requests.
        folder: where the server finds the adapter.
    """
    rank = max([int(lora.get("r") or 8), *(int(one) for one in (lora.get("rank_pattern") or {}).values())])
    limit = next(one for one in RANKS if one >= rank)
    size = ["--max-lora-rank", str(limit)] if limit > USUAL_RANK else []
    return ["--enable-lora", *size, "--lora-modules", f"{name}={folder}"]


def of_model(name: str | None) -> Served:
    """Return whether vLLM serves a whole model.

    Args:
        name: class of the model in transformers.
    """
    known = _known()
    if name in known["adapters"] or name in known["whole"]:
        return Served(True, f"vLLM {known['version']}: vllm serve MODEL")
    what = name or "this architecture and task"
    return Served(None, f"vLLM {known['version']} has no model for {what}; its transformers backend may serve it")


def _obstacles(lora: Mapping[str, Any], new_tokens: int) -> Iterator[str]:
    """Yield what vLLM refuses of an adapter."""
    saved = [name for name in lora.get("modules_to_save") or () if name.rpartition(".")[2] not in SAVED]
    if saved:
        yield f"it holds whole modules ({', '.join(saved)})"
    if new_tokens or lora.get("trainable_token_indices"):
        yield "it holds rows of the embeddings for new or chosen tokens"
    if lora.get("use_dora"):
        yield "it is a DoRA adapter"
    if lora.get("bias") not in (None, "none"):
        yield f"it holds biases (bias: {lora['bias']})"
    if lora.get("lora_bias"):
        yield "its B matrices have biases (lora_bias)"
    ranks = {"r": lora.get("r"), **(lora.get("rank_pattern") or {})}
    name, rank = max(((name, int(one or 0)) for name, one in ranks.items()), key=lambda item: item[1])
    if rank > RANKS[-1]:
        yield f"its rank is {rank} ({name}), and the largest is {RANKS[-1]}"


def vllm_version() -> str:
    """Return the version of vLLM whose rules these are."""
    return str(_known()["version"])


@cache
def _known() -> dict[str, Any]:
    text = files("finetune_trainer.serving").joinpath("vllm_models.toml").read_text("utf-8")
    return tomllib.loads(text)
