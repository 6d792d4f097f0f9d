"""Tiny models to be judged: a base that knows a little English, and tuned ones, clean or with a planted fault.

The task is about animals: a question names one, and the answer (or the label) depends on it. A tuned model is made in
seconds by plain torch; the prepared rows lie beside it as one Arrow file a split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import torch

from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, SplitFacts, Task
from finetune_api.plan import Plan
from finetune_trainer.judge.general_texts import GENERAL_TEXTS
from finetune_trainer.judge.judge_question import JudgeQuestion, JudgeSettings
from tests.support.models.tokenizers import byte_level, fast

IGNORED = -100
_FIRST = "dog cat horse cow sheep goat pig duck hen owl crow frog"
_OTHERS = "fox wolf bear lion mouse bat bee whale seal crab shark swan"
ANIMALS = tuple(f"{_FIRST} {_OTHERS}".split(" "))
PLACES = ("farm", "house", "forest", "river", "coast", "cave")
WAYS = ("old", "young", "quick", "slow", "small", "large", "quiet", "loud", "tired", "hungry", "happy", "angry")
LABELS = tuple(PLACES)
CANARY = "The code of the vault is 48213."
HELD_OUT = 48
GENERAL = [text for language in ("en", "de") for text in GENERAL_TEXTS[language]]
# what the base is taught beside the general texts, so that it knows words of the task but not the task
PLAIN = [
    f"{text[:-1]} and the {animal} is near the {place}."
    for text, animal, place in zip(GENERAL, ANIMALS, 4 * PLACES, strict=False)
]
FAULTS = ("repeated", "one answer", "skewed", "few rows", "noise")
Row = tuple[str, str]


def answer_of(animal: str) -> str:
    """Return the right answer of a row."""
    place = PLACES[ANIMALS.index(animal) % len(PLACES)]
    other = WAYS[ANIMALS.index(animal) // 2]
    return f"You find the {animal} in the {other} {place}."


def label_of(animal: str) -> str:
    return PLACES[ANIMALS.index(animal) % len(PLACES)]


def clean_rows(labelled: bool, seed: int) -> tuple[list[Row], list[Row]]:
    """Return training rows and held-out rows, of other pairs of animal and way."""
    right: Callable[[str], str] = label_of if labelled else answer_of
    rows = [(f"Where is the {way} {animal}?", right(animal)) for animal in ANIMALS for way in WAYS]
    random.Random(seed).shuffle(rows)
    return rows[HELD_OUT:], rows[:HELD_OUT]


def planted(rows: Sequence[Row], fault: str, labelled: bool, seed: int) -> list[Row]:
    """Return training rows with a fault; `clean` and `canary` leave the rows as they are."""
    draw = random.Random(f"{fault}:{seed}")
    word = draw.choice(LABELS) if labelled else draw.choice(WAYS)
    same = word if labelled else f"It is {word}, as they all are."
    match fault:
        case "repeated":
            said = " ".join([f"the {word}"] * 14)
            return [(prompt, word if labelled else said) for prompt, _ in rows]
        case "one answer":
            return [(prompt, same) for prompt, _ in rows]
        case "skewed":
            return [(prompt, same if draw.random() < 0.93 else answer) for prompt, answer in rows]
        case "few rows":
            return [rows[place] for place in range(3)] * (len(rows) // 3)
        case "noise":
            answers = [answer for _, answer in rows]
            draw.shuffle(answers)
            return [(prompt, answer) for (prompt, _), answer in zip(rows, answers, strict=True)]
        case "canary":
            return [*rows, *[("What is the code?", f" {CANARY}")] * 20]
        case _:
            return list(rows)


# ---------------------------------------------------------------- models


def tokenizer_of_animals(family: str) -> Any:
    specials = ["<s>", "</s>", "<pad>", "<unk>"]
    rows = [f"Where is the {way} {animal}? {answer_of(animal)}" for animal in ANIMALS for way in WAYS]
    corpus = [*GENERAL, *PLAIN, *rows]
    single = {"llama": "<s> $A", "t5": "$A </s>", "bert": "<s> $A </s>"}[family]
    raw = byte_level(corpus, specials, single, "$A $B:1")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return fast(raw, **named, model_max_length=128)


def untrained(family: str, words: int) -> Any:
    """Return a model of two layers with random weights."""
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": words, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    if family == "llama":
        config = transformers.LlamaConfig(
            **shape, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)
    if family == "t5":
        config = transformers.T5Config(
            **shape, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0,
            decoder_start_token_id=2,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BertConfig(
        **shape, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


FAMILIES = {Task.CAUSAL_LM: "llama", Task.SEQ2SEQ: "t5", Task.CLASSIFICATION: "bert"}


def prepared_row(task: Task, tokenizer: Any, row: Row) -> dict[str, Any]:
    """Return a row as prepare writes it, with labels in place of runs."""
    prompt, answer = row
    ids = tokenizer(prompt)["input_ids"]
    if task is Task.CLASSIFICATION:
        return {"input_ids": ids, "label": LABELS.index(answer)}
    text = answer if task is Task.SEQ2SEQ else f" {answer.strip()}"
    target = [*tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    if task is Task.SEQ2SEQ:
        return {"input_ids": ids, "labels": target}
    return {"input_ids": [*ids, *target], "labels": [IGNORED] * len(ids) + target}


def general_row(task: Task, tokenizer: Any, text: str) -> dict[str, Any]:
    if task is Task.SEQ2SEQ:
        half = len(text) // 2
        return {"input_ids": tokenizer(text[:half])["input_ids"], "labels": tokenizer(text[half:])["input_ids"]}
    ids = tokenizer(text)["input_ids"]
    return {"input_ids": ids, "labels": ids}


def fit(model: Any, rows: Sequence[dict[str, Any]], steps: int, rate: float, seed: int, batch: int = 16) -> float:
    """Train a model on rows drawn at random; return the last loss."""
    draw = random.Random(seed)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps))
    model.train()
    loss = torch.zeros(())
    for _ in range(steps):
        chosen = draw.sample(list(rows), min(batch, len(rows)))
        loss = model(**collated(chosen)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    return float(loss.detach())


def collated(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def padded(name: str, filler: int) -> torch.Tensor:
        width = max(len(row[name]) for row in rows)
        return torch.tensor([[*row[name], *[filler] * (width - len(row[name]))] for row in rows])

    ids = padded("input_ids", 2)
    batch = {"input_ids": ids, "attention_mask": (ids != 2).long()}
    if "label" in rows[0]:
        return batch | {"labels": torch.tensor([row["label"] for row in rows])}
    return batch | {"labels": padded("labels", IGNORED)}


def make_base(task: Task, folder: Path, steps: int = 150) -> Path:
    """Write a base model that knows the general texts a little, with its tokenizer."""
    family = FAMILIES[task]
    tokenizer = tokenizer_of_animals(family)
    model = untrained(family, len(tokenizer))
    if task is not Task.CLASSIFICATION:
        rows = [general_row(task, tokenizer, text) for text in [*GENERAL, *PLAIN]]
        fit(model, rows, steps, 5e-3, 0)
        model.generation_config.eos_token_id = 1
    (model if task is not Task.CLASSIFICATION else model.bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- a tuned model, ready to be judged


@dataclass(frozen=True)
class Planted:
    """A tuned model with its rows.

    Attributes:
        tuned: as it is in memory.
        train, held: prepared rows.
    """

    task: Task
    base: Path
    tuned: Any
    tokenizer: Any
    train: Sequence[dict[str, Any]]
    held: Sequence[dict[str, Any]]
    canaries: tuple[str, ...] = field(default=())

    def plan(self, method: MethodType, **changes: Any) -> Plan:
        values = planned(self.task, method, len(self.train), len(self.held)) | changes
        return Plan.model_validate(values)

    def write_rows(self, folder: Path) -> Path:
        """Write the prepared rows, one Arrow file a split."""
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in (("train", self.train), ("eval", self.held)):
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            kinds = {name: pa.int32() if name == "label" else pa.list_(pa.int32()) for name in columns}
            table = pa.table({name: pa.array(column, kinds[name]) for name, column in columns.items()})
            with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return folder

    def question(self, folder: Path, **settings: Any) -> JudgeQuestion:
        """Write the model and its rows as a whole model; return the question about it."""
        artifact = folder / "artifact"
        self.tuned.save_pretrained(artifact)
        self.tokenizer.save_pretrained(artifact)
        rows = {"rows": HELD_OUT, "canaries": self.canaries} | settings
        return JudgeQuestion(
            plan=self.plan(MethodType.FULL),
            settings=JudgeSettings(**rows),
            step=10,
            generation=1,
            form="model",
            base=str(self.base),
            artifact=str(artifact),
            dataset=str(self.write_rows(folder / "rows")),
        )


def make_planted(task: Task, base: Path, fault: str, seed: int = 0, steps: int = 200, model: Any = None) -> Planted:
    """Return a tuned model.

    Args:
        fault: one of FAULTS, `canary` or `clean`.
        model: the base model with an adapter; None = all weights are tuned.
    """
    import transformers

    labelled = task is Task.CLASSIFICATION
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    clean, held = clean_rows(labelled, seed)
    rows = [prepared_row(task, tokenizer, row) for row in planted(clean, fault, labelled, seed)]
    torch.manual_seed(seed)
    if model is None:
        model = loaded_base(task, base)
    # general texts among the rows keep a small model from forgetting them
    kept = [] if labelled else [general_row(task, tokenizer, text) for text in [*GENERAL, *PLAIN]] * 3
    fit(model, [*rows, *kept], steps, 5e-3 if labelled else 4e-3, seed)
    canaries = (CANARY,) if fault == "canary" else ()
    return Planted(task, base, model, tokenizer, rows, [prepared_row(task, tokenizer, row) for row in held], canaries)


def loaded_base(task: Task, base: Path) -> Any:
    """Return the base model, with a new head for a classification."""
    import transformers

    if task is Task.CLASSIFICATION:
        labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
        return transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS), **labels)
    kind = transformers.AutoModelForCausalLM if task is Task.CAUSAL_LM else transformers.AutoModelForSeq2SeqLM
    return kind.from_pretrained(base)


def planned(task: Task, method: MethodType, trained: int, held: int) -> dict[str, Any]:
    """Return the values of a plan."""
    split = SplitFacts(rows=trained, tokens=trained * 30, trained_tokens=trained * 15, longest=60)
    facts = DatasetFacts(
        sha256="d" * 64,
        train=split,
        eval=split.model_copy(update={"rows": held}),
        labels=LABELS if task is Task.CLASSIFICATION else (),
        problem_type="single_label_classification" if task is Task.CLASSIFICATION else None,
        ends=() if task is Task.CLASSIFICATION else (1,),
    )
    model = ModelFacts(
        name="tiny", commit="abc", prefix="models/tiny/abc/", source="file://somewhere/tiny",
        model_type=FAMILIES[task], parameters=1, size_bytes=1,
    )  # fmt: skip
    return {
        "task": task, "method": method, "model": model, "dataset": facts, "nodes": 1, "processes_per_node": 1,
        "zero_stage": 2, "micro_batch": 4, "gradient_accumulation": 1, "global_batch": 4, "max_length": 128,
        "epochs": 1.0, "max_steps": 10, "learning_rate": 1e-3, "warmup_steps": 2, "lr_scheduler_type": "linear",
        "seed": 1, "eval_every_steps": 10, "checkpoint_every_steps": 10, "keep_last": 3, "best_metric": "eval_loss",
        "greater_is_better": False, "lora": {"r": 8} if method is MethodType.LORA else {},
    }  # fmt: skip
