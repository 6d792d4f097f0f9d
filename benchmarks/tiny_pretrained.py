"""Two small models to fine-tune, pre-trained here for some minutes because the machine cannot download any: a T5 on
prose, a LLaMA on code.

They have about a million parameters each and tokenizers of their own; the same recipe gives the same weights.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.stdlib_tasks import code, prose

VOCABULARY = 2048
LENGTH = 96  # tokens of a row in pre-training
WARM_UP = 50


@dataclass(frozen=True)
class Recipe:
    """The settings of a model's pre-training, which are the key of its cache."""

    family: str
    steps: int
    rows: int
    rate: float
    width: int = 128
    layers: int = 4
    seed: int = 0
    version: int = 1


RECIPES = {
    "seq2seq": Recipe("t5", steps=600, rows=20, rate=2e-2, layers=3, version=3),
    "causal-lm": Recipe("llama", steps=600, rows=16, rate=3e-3),
}


def pretrain(recipe: Recipe, folder: Path) -> None:
    """Make the model and save it in transformers' format; print its loss at intervals."""
    torch.manual_seed(recipe.seed)
    texts = prose() if recipe.family == "t5" else code()
    tokenizer = train_tokenizer(recipe.family, texts)
    model = built(recipe, tokenizer)
    batches = halves(recipe, tokenizer, texts) if recipe.family == "t5" else windows(recipe, tokenizer, texts)
    optimizer = optimizer_of(recipe, model)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / WARM_UP) * max(0.05, 1 - step / recipe.steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{recipe.family}: {parameters:,} parameters, {len(texts):,} texts", flush=True)
    for step, batch in zip(range(1, recipe.steps + 1), batches, strict=False):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == 1:
            print(f"{recipe.family}: step {step}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def optimizer_of(recipe: Recipe, model: Any) -> torch.optim.Optimizer:
    """Return the optimizer. T5's is Adafactor, as in its pre-training, whose steps are relative to the weights: its
    embeddings are large, and AdamW would take a day to move them.
    """
    from transformers.optimization import Adafactor

    if recipe.family == "t5":
        made: torch.optim.Optimizer = Adafactor(model.parameters(), lr=recipe.rate, relative_step=False)
        return made
    return torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)


def train_tokenizer(family: str, texts: Sequence[str]) -> Any:
    """Train a byte-level BPE: </s> after each text for T5, <s> before it for LLaMA."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "</s>", "<s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    single, own = ("$A </s>", ("</s>", 1)) if family == "t5" else ("<s> $A", ("<s>", 2))
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[own])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def built(recipe: Recipe, tokenizer: Any) -> Any:
    """Return the model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    ids = {"pad_token_id": 0, "eos_token_id": 1}
    if recipe.family == "t5":
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=recipe.width,
            d_kv=recipe.width // 4,
            d_ff=2 * recipe.width,
            num_layers=recipe.layers,
            num_heads=4,
            dropout_rate=0.1,
            decoder_start_token_id=0,
            **ids,
        )
        return T5ForConditionalGeneration(config).train()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=5 * recipe.width // 2,
        num_hidden_layers=recipe.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=2,
        **ids,
    )
    return LlamaForCausalLM(llama).train()


def windows(recipe: Recipe, tokenizer: Any, texts: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of concatenated texts, without end."""
    draw = random.Random(recipe.seed)
    ids = [[*row, 1] for row in tokenizer(list(texts))["input_ids"]]
    while True:
        draw.shuffle(ids)
        stream = torch.tensor([token for row in ids for token in row])
        size = recipe.rows * LENGTH
        for start in range(0, len(stream) - size, size):
            rows = stream[start : start + size].view(recipe.rows, LENGTH)
            yield {"input_ids": rows, "labels": rows}


def halves(recipe: Recipe, tokenizer: Any, texts: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of texts whose second half is the target, without end: the objective by which T5 was adapted to
    writing (Lester et al. 2021, arXiv 2104.08691, section 3.2). Filling in spans takes far longer to teach a decoder.
    """
    draw = random.Random(recipe.seed)
    ids = [row[:-1] for row in tokenizer(list(texts))["input_ids"] if len(row) >= 12]
    while True:
        rows = draw.choices(ids, k=recipe.rows)
        cut = [row[(at := draw.randrange(max(1, len(row) - LENGTH + 1))) : at + LENGTH] for row in rows]
        places = [draw.randrange(len(row) // 4, len(row) // 2) for row in cut]
        inputs = [[*row[:place], 1] for row, place in zip(cut, places, strict=True)]
        labels = [[*row[place:], 1] for row, place in zip(cut, places, strict=True)]
        yield {
            "input_ids": padded(inputs, 0),
            "attention_mask": padded([[1] * len(row) for row in inputs], 0),
            "labels": padded(labels, -100),
        }


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Return [rows, longest] int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
