"""The only file of the export that depends on the insides of libraries. `tests/unit/test_compat.py` checks that the
installed libraries have each of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig


def parameter_of(model: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the parameter that each tensor of a checkpoint becomes, or the first of several (transformers 5.23).

    Args:
        keys: names of tensors in the model's files.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    known = model.state_dict()
    return {key: rename_source_key(key, renamings, converters, model.base_model_prefix, known)[0] for key in keys}


def load_some(model: Any, tensors: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Load some tensors of a checkpoint into a model on the meta device, as `from_pretrained` would load all of them
    (transformers 5.23).

    Args:
        tensors: name in the files -> slice of an open safetensors file.
    """
    mapping: Any = get_model_conversion_mapping(model)
    options = LoadStateDictConfig(dtype=dtype, dtype_plan=model._get_dtype_plan(dtype), weight_mapping=mapping)
    info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), options)
    if info.error_msgs or info.conversion_errors:
        raise RuntimeError("; ".join([*info.error_msgs, *info.conversion_errors.values()]))


def named_as_in_files(model: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return parameters under the names, and in the parts, of the model's files (transformers 5.23).

    Args:
        model: `load_some` has loaded these parameters last.
    """
    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(state))
    return converted
