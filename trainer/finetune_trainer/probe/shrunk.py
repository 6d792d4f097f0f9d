"""A configuration of any architecture made small: the same code, every kind of layer once, no more width than needed.

Sizes are known by their names, which transformers' configurations share. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DEPTH, MOST_KINDS = 2, 4  # layers; more only to have every kind of layer, up to four
HIDDEN, HEADS, VOCABULARY, POSITIONS, WINDOW = 64, 4, 256, 64, 16
NESTED_DEPTH = 1  # layers of a tower for images or sound


def _names(listed: str) -> list[str]:
    """Return names that stand in one text, with spaces between them."""
    return listed.split()


DEPTHS = frozenset(
    _names("""num_hidden_layers num_layers num_decoder_layers n_layer n_layers encoder_layers decoder_layers
    num_encoder_layers depth""")
)
HEAD_COUNTS = frozenset(
    _names("""num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads
    num_decoder_attention_heads num_encoder_attention_heads""")
)
KEY_HEADS = frozenset(_names("num_key_value_heads num_kv_heads n_head_kv kv_n_heads num_global_key_value_heads"))
WIDTHS = frozenset(_names("hidden_size d_model n_embd dim emb_dim embed_dim pooler_hidden_size"))
EMBEDDED = frozenset(_names("embedding_size word_embed_proj_dim"))  # a projection follows if it is not the width
LIMITS = frozenset(
    _names("""max_position_embeddings n_positions max_seq_len max_sequence_length seq_length
    max_encoder_position_embeddings max_decoder_position_embeddings""")
)
# the value of a name where the model's own is larger
MOST: Mapping[str, int] = {
    **dict.fromkeys(
        _names("head_dim d_head kv_channels attention_head_dim global_head_dim d_kv v_head_dim"), HIDDEN // HEADS
    ),
    **dict.fromkeys(
        _names("""intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim hidden_dim d_inner lru_width
            intermediate_size_mlp
        dense_ffn_hidden_size ffn_hidden_size"""),
        2 * HIDDEN,
    ),
    **dict.fromkeys(
        _names("""moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
        expert_ffn_hidden_size projection_dim zero_expert_num"""),
        HIDDEN // 2,
    ),
    "shared_intermediate_size": HIDDEN,
    **dict.fromkeys(_names("num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts"), 4),
    **dict.fromkeys(_names("num_experts_per_tok num_experts_per_token moe_topk moe_k num_selected_experts top_k"), 2),
    **dict.fromkeys(_names("n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace"), 1),
    **dict.fromkeys(_names("q_lora_rank kv_lora_rank"), 16),
    **dict.fromkeys(_names("qk_nope_head_dim qk_rope_head_dim rotary_dim"), 8),
    **dict.fromkeys(_names("state_size mamba_d_state ssm_state_size time_step_rank mamba_dt_rank"), 8),
    **dict.fromkeys(_names("mamba_chunk_size chunk_size mamba_d_head mamba_head_dim mamba_headdim"), 16),
    **dict.fromkeys(_names("linear_num_value_heads linear_num_key_heads"), 2),
    **dict.fromkeys(_names("linear_key_head_dim linear_value_head_dim"), 16),
    **dict.fromkeys(_names("sliding_window attention_chunk_size window_size local_attention attention_window"), WINDOW),
    **dict.fromkeys(_names("encoder_sliding_window block_length local_radius global_block_size"), WINDOW),
    **dict.fromkeys(
        _names("decoder_sparse_step interleave_moe_layer_step full_attention_interval max_window_layers"), 2
    ),
    **dict.fromkeys(_names("sliding_window_pattern global_attn_every_n_layers no_rope_layer_interval"), 2),
    **dict.fromkeys(_names("attn_layer_period expert_layer_period"), 2),
    **dict.fromkeys(_names("attn_layer_offset expert_layer_offset"), 1),
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "num_kv_shared_layers": 0,
    "query_pre_attn_scalar": HIDDEN // HEADS,
    "position_buckets": 32,
    "original_max_position_embeddings": POSITIONS // 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "attention_window_size": WINDOW,
    "mm_tokens_per_image": 4,
    "adapter_hidden_size": HIDDEN,
    "bottleneck_size": HIDDEN,
}
PARTS_BY_TEXT = frozenset(_names("text_config encoder decoder"))  # nested configurations that text goes through
IDS = ("_token_id", "_token_ids", "_token_index", "_token_idx")
LAYER_NUMBERS = frozenset(_names("moe_layers mlp_only_layers attn_layer_indices hybrid_layer_ids"))


def shrunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a small configuration of the same architecture.

    Args:
        config: with every value, as `PretrainedConfig.to_dict` gives it.
    """
    return _shrunk(config, _moved_ids(config), DEPTH)


def fewer_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with few layers and tokens, and widths as they are: for names of sizes not known here."""
    ids, small = _moved_ids(config), _shrunk(config, _moved_ids(config), DEPTH)
    kept = {name: value for name, value in config.items() if not (_is_id(name) or name in small.keys() & _SHORT)}
    moved = {name: _moved(value, ids) for name, value in config.items() if _is_id(name)}
    return {**kept, **{name: value for name, value in small.items() if name in _SHORT}, **moved}


_SHORT = DEPTHS | {"vocab_size", "layer_types", "mlp_layer_types", "layers_block_type"} | LAYER_NUMBERS


def _shrunk(config: Mapping[str, Any], ids: Mapping[int, int], depth: int) -> dict[str, Any]:
    chosen, old = _layers(config, depth)
    width = next((config[name] for name in ("hidden_size", "d_model", "n_embd", "dim") if _size(config.get(name))), 0)
    heads = next((config[name] for name in sorted(HEAD_COUNTS) if _size(config.get(name))), 0)
    made: dict[str, Any] = {}
    for name, value in config.items():
        if name == "per_layer_config" and isinstance(value, Mapping):  # Gemma 4's: values of some layers, by number
            own = {int(at): one for at, one in value.items() if int(at) in chosen}
            made[name] = {chosen.index(at): _shrunk(one, ids, depth) for at, one in own.items()}
        elif isinstance(value, Mapping):
            made[name] = _nested(name, value, ids, config)
        elif name in LAYER_NUMBERS and isinstance(value, Sequence):
            made[name] = [chosen.index(one) for one in value if one in chosen]
        elif name == "attention_types":  # GPT-Neo's: [[kinds, times], ...]
            made[name] = [[kinds, 1] for kinds, _ in value[:1]]
        elif isinstance(value, list | tuple) and old and len(value) == old and not _is_id(name):
            made[name] = [_value(name, value[at], width, heads, ids) for at in chosen]
        elif name in DEPTHS and _size(value):
            made[name] = len(chosen) if old else min(value, depth)
        else:
            made[name] = _value(name, value, width, heads, ids)
    return made | _depending(config, made)


def _layers(config: Mapping[str, Any], depth: int) -> tuple[list[int], int]:
    """Return the numbers of the layers that are kept, one of each kind, and how many layers the model has."""
    old = next((int(config[name]) for name in sorted(DEPTHS) if _size(config.get(name))), 0)
    if not old:
        return [], 0
    if "attention_types" in config:
        return list(range(len(config["attention_types"][0][0]))), old
    alike = [value for value in config.values() if isinstance(value, list | tuple) and len(value) == old]
    kinds: dict[str, int] = {}
    for at in range(old):
        sparse = [at in config[name] for name in sorted(LAYER_NUMBERS) if isinstance(config.get(name), Sequence)]
        sparse.append(str(at) in {str(one) for one in config.get("per_layer_config") or {}})
        kinds.setdefault(str([value[at] for value in alike if not isinstance(value[at], float)] + sparse), at)
    chosen = sorted(kinds.values())[:MOST_KINDS]
    chosen += [at for at in range(old) if at not in chosen][: max(0, depth - len(chosen))]
    return sorted(chosen), old


def _value(name: str, value: Any, width: int, heads: int, ids: Mapping[int, int]) -> Any:
    if _is_id(name):
        return _moved(value, ids)
    if isinstance(value, list | tuple):
        return [_value(name, one, width, heads, ids) for one in value]
    if not _size(value):
        return value
    if name in WIDTHS:
        return HIDDEN
    if name in EMBEDDED:
        return HIDDEN if value == width else min(value, HIDDEN // 2)
    if name in HEAD_COUNTS:
        return HEADS if value > 2 else value
    if name in KEY_HEADS:
        return min(value, 2) if value != heads else (HEADS if value > 2 else value)
    if name in LIMITS:
        return POSITIONS + value % 8 if value > POSITIONS else value  # such as RoBERTa's 512 and 2
    if name.endswith("vocab_size"):
        return min(value, VOCABULARY)
    return min(value, MOST[name]) if name in MOST else value


def _depending(config: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that follow from others."""
    values: dict[str, Any] = {}
    if "head_dim" in made and _size(made.get("qk_rope_head_dim")) and config["head_dim"] == config["qk_rope_head_dim"]:
        values["head_dim"] = made["qk_rope_head_dim"]
    if "qk_head_dim" in made and _size(made.get("qk_rope_head_dim")):
        values["qk_head_dim"] = made["qk_rope_head_dim"] + made["qk_nope_head_dim"]
    expand = config.get("mamba_expand", config.get("expand"))
    if expand and "hidden_size" in made:
        inner = int(expand * HIDDEN)
        if "state_size" in made and "intermediate_size" in made and "num_attention_heads" not in made:  # Mamba's own
            values["intermediate_size"] = inner
        for name, size in (("mamba_n_heads", "mamba_d_head"), ("num_heads", "head_dim")):
            if name in made and size in made and (name != "num_heads" or "state_size" in made):
                values |= {name: inner // 16, size: 16}
        values |= {name: 1 for name in ("mamba_n_groups", "n_groups") if name in made}
        if _size(config.get("mamba_d_ssm")):
            values["mamba_d_ssm"] = inner
    if _size(config.get("image_size")) and _size(config.get("patch_size")):
        values["image_size"] = 2 * config["patch_size"]
    return values


def _nested(name: str, value: Mapping[str, Any], ids: Mapping[int, int], outer: Mapping[str, Any]) -> Any:
    if name.startswith("rope"):
        return _rope(value, outer)
    if name in PARTS_BY_TEXT or name.endswith("_config"):
        return _shrunk(value, ids, DEPTH if name in PARTS_BY_TEXT else NESTED_DEPTH)
    return dict(value)


def _rope(value: Mapping[str, Any], outer: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of rotary positions, whose lists are as long as half of the turned part of a head."""
    share = value.get("partial_rotary_factor") or outer.get("partial_rotary_factor") or 1.0
    turned = MOST["qk_rope_head_dim"] if outer.get("qk_rope_head_dim") else int(HIDDEN // HEADS * share)
    half = turned // 2
    made: dict[str, Any] = {}
    for name, one in value.items():
        if isinstance(one, Mapping):
            made[name] = _rope(one, outer)
        elif name == "mrope_section":
            parts = [max(1, half * part // sum(one)) for part in one]
            made[name] = [half - sum(parts[1:]), *parts[1:]]
        elif name in ("short_factor", "long_factor"):
            made[name] = list(one[:half])
        elif name == "original_max_position_embeddings":
            made[name] = min(one, POSITIONS // 2)
        else:
            made[name] = one
    return made


def _moved_ids(config: Mapping[str, Any]) -> dict[int, int]:
    """Return new ids of the special tokens that a small vocabulary does not hold: its last ones."""
    large = sorted({one for one in _ids(config) if one >= VOCABULARY})
    return {old: VOCABULARY - 1 - at for at, old in enumerate(large)}


def _ids(config: Mapping[str, Any]) -> list[int]:
    found: list[int] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += _ids(value)
        elif _is_id(name):
            found += [one for one in (value if isinstance(value, list | tuple) else [value]) if _size(one)]
    return found


def _moved(value: Any, ids: Mapping[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return [_moved(one, ids) for one in value]
    return ids.get(value, value) if _size(value) else value


def _is_id(name: str) -> bool:
    return str(name).endswith(IDS)  # labels have numbers for names


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
