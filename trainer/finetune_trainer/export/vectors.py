"""The files by which sentence-transformers makes the vectors that were trained. Version 2 and newer read them."""

import json
from pathlib import Path
from typing import Any

from finetune_api.plan import PlannedEmbedding
from finetune_trainer.model.files import MODULES, POOLING, PROMPTS, TEXT_LENGTH

FLAGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}
STEPS = (("", "Transformer"), (POOLING.partition("/")[0], "Pooling"), ("2_Normalize", "Normalize"))


def describe_vectors(folder: Path, planned: PlannedEmbedding) -> None:
    """Write the files into an artifact: model, pooling, normalised vectors, prompts, and where texts are cut."""
    steps = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(STEPS)
    ]
    flags = {flag: name == planned.pooling for name, flag in FLAGS.items()}
    prompts = {"query": planned.query_prompt, "document": planned.document_prompt}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / MODULES, steps)
    _write(folder / POOLING, {"word_embedding_dimension": planned.dimension, **flags})
    _write(folder / PROMPTS, settings)
    _write(folder / TEXT_LENGTH, {"max_seq_length": planned.max_seq_length, "do_lower_case": False})


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
