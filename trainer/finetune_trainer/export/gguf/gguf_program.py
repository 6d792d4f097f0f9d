"""The converter of llama.cpp, run in a process of its own: a model in Hugging Face's layout becomes GGUF files.

    python -m finetune_trainer.export.gguf.gguf_program LLAMA_CPP MODEL FILE QUANTIZATION [FILE QUANTIZATION ...]

Three things are added to what the converter does. Types of 4 and 5 bits, which the writer library of llama.cpp has but
the converter does not offer. The pre-tokenizer of a vocabulary that the converter has not seen, if the pre-tokenizer
itself is a known one. And the tokens that end an answer.
"""

import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.export.gguf.pre_tokenizers import pre_tokenizer_of
from finetune_trainer.model.files import GENERATION_CONFIG, TOKENIZER

# The large matrices of a layer, by llama.cpp's names. Everything else keeps 8 bits or more.
LARGE = r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight"
SMALL_TYPES = frozenset({"q4_0", "q4_1", "q5_0", "q5_1"})


def convert(llama_cpp: Path, model: Path, wanted: Sequence[tuple[str, str]]) -> None:
    """Convert a model.

    Args:
        llama_cpp: folder of the converter.
        model: folder in Hugging Face's layout.
        wanted: file and name of a type, in lower case.
    """
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    values = ModelBase.load_hparams(model, False)
    if "n_positions" in values:
        values.setdefault("n_ctx", values["n_positions"])  # GPT-2's converter reads a name that transformers 5 lacks
    architecture = get_model_architecture(values, ModelType.TEXT)
    for file, quantization in wanted:
        file_type = gguf.LlamaFileType[("ALL_" if quantization == "f32" else "MOSTLY_") + quantization.upper()]
        converter = _extended(get_model_class(architecture), file_type, gguf)
        basis = gguf.LlamaFileType.MOSTLY_Q8_0 if quantization in SMALL_TYPES else file_type
        with torch.inference_mode():
            converter(model, basis, Path(file), hparams=dict(values)).write()


def _extended(converter: Any, wanted: Any, gguf: Any) -> Any:
    """Return the converter's class of an architecture with what this module adds."""
    class_name = wanted.name.partition("_")[2]

    def tensor_force_quant(self: Any, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
        forced = converter.tensor_force_quant(self, name, new_name, bid, n_dims)
        if forced is False and n_dims > 1 and class_name.lower() in SMALL_TYPES and re.fullmatch(LARGE, new_name):
            return gguf.GGMLQuantizationType[class_name]
        return forced

    def prepare_tensors(self: Any) -> None:
        converter.prepare_tensors(self)
        self.ftype = wanted  # the metadata, which is written next, names what most weights are

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(converter.get_vocab_base_pre(self, tokenizer))
        except NotImplementedError:
            name = pre_tokenizer_of(json.loads((self.dir_model / TOKENIZER).read_text("utf-8")))
            if name is None:
                raise NotImplementedError(
                    "llama.cpp has no pre-tokenizer that splits texts as this tokenizer"
                ) from None
            return name

    def set_vocab(self: Any) -> None:
        converter.set_vocab(self)
        _end_turns(self, gguf)

    added = (tensor_force_quant, prepare_tensors, get_vocab_base_pre, set_vocab)
    values = {"model_arch": converter.model_arch, **{function.__name__: function for function in added}}
    return type(converter.__name__, (converter,), values)


def _end_turns(converter: Any, gguf: Any) -> None:
    """Write the token that ends an answer as the end of a turn, if it is not the end of a text too."""
    path = converter.dir_model / GENERATION_CONFIG
    ends = json.loads(path.read_text("utf-8")).get("eos_token_id") if path.exists() else None
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    written = converter.gguf_writer.kv_data[0].get(gguf.Keys.Tokenizer.EOS_ID)
    others = [one for one in listed if written is None or one != written.value]
    if others and gguf.Keys.Tokenizer.EOT_ID not in converter.gguf_writer.kv_data[0]:
        converter.gguf_writer.add_eot_token_id(others[0])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    convert(Path(sys.argv[1]), Path(sys.argv[2]), list(zip(sys.argv[3::2], sys.argv[4::2], strict=True)))
