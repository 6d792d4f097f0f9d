"""A tokenizer with the control tokens of many chat models, and conversations for their templates."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune_trainer.prepare.tokens.spans import END_OF_TURN, NEXT_SPEAKER
from tests.support.models import CORPUS

MARKS = (
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<|assistant|>",
    "<|system|>",
    *NEXT_SPEAKER,
    *(mark for mark in END_OF_TURN if mark != "</s>"),
)

SHORT = (
    {"role": "user", "content": "How do I reset my password?"},
    {"role": "assistant", "content": "Open the settings page and choose security."},
)
LONG = (
    *SHORT,
    {"role": "user", "content": "And the printer? 紙がない 🙂"},
    {"role": "assistant", "content": "Refill it, on the third floor; it is out of paper again — naïve, but true 🙂"},
)
SYSTEM = ({"role": "system", "content": "Answer in one sentence."}, *LONG)

CONVERSATIONS: Sequence[Sequence[dict[str, Any]]] = (SHORT, LONG, SYSTEM)


def write_chat_rows(path: Path, count: int) -> Path:
    """Write conversations of several lengths as JSON Lines."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {index}: {CORPUS[index % len(CORPUS)]}"},
                {"role": "assistant", "content": f"Answer {index}. {CORPUS[(3 * index) % len(CORPUS)] * (index % 4)}"},
            ]
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@lru_cache(maxsize=1)
def chat_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer in transformers' wrapper, without a template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>", *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
