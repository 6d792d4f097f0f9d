"""Preference rows, as prepare writes them, and TRL's own losses of the same batch."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from finetune_api.plan import PlannedPreference
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_trainer.worker.batches.padded import IGNORED

IDS = pa.list_(pa.int32())
PAD = 1


@dataclass(frozen=True)
class Pair:
    """One row of token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def pairs(count: int, vocabulary: int, seed: int = 0) -> list[Pair]:
    """Return pairs of random tokens, of lengths that differ."""
    draw = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(5, vocabulary - 1) for _ in range(draw.randint(least, most))]

    return [Pair(ids(2, 9), ids(1, 14), ids(1, 14)) for _ in range(count)]


def plan_of(loss: PreferenceLoss, reference: str = "cached", **changes: Any) -> PlannedPreference:
    """Return the plan of a loss with its defaults."""
    facts = PREFERENCE_LOSSES[loss]
    values = {"loss_type": loss, "beta": facts.beta, "label_smoothing": facts.smoothing, "reference": reference}
    if loss is PreferenceLoss.SIMPO:
        values["gamma"] = facts.beta / 2
    if not facts.reference:
        values["reference"] = "none"
    return PlannedPreference(**(values | changes))


def labelled(prompt: Sequence[int], completion: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels of one sequence."""
    ids = np.array([*prompt, *completion], np.int32)
    return ids, np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids).astype(np.int32)


def pair_row(pair: Pair) -> dict[str, Any]:
    """Return a row of both sequences, as the worker reads it."""
    sides = [labelled(pair.prompt, side) for side in (pair.chosen, pair.rejected)]
    ids, labels = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    return {"input_ids": ids, "labels": labels, "seq_lengths": np.array([len(one) for one, _ in sides], np.int32)}


def single_rows(given: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return a row for each chosen completion of a pair, every third undesirable; TRL's mismatch: the row before."""
    made = []
    for number, pair in enumerate(given):
        ids, labels = labelled(pair.prompt, pair.chosen)
        mismatched = labelled(pair.prompt, given[number - 1].chosen)
        made.append({"input_ids": ids, "labels": labels, "label": int(number % 3 > 0), "mismatched": mismatched})
    return made


def write_pairs(path: Path, given: Sequence[Pair]) -> None:
    """Write pairs in the format of prepare."""
    rows = [pair_row(pair) for pair in given]
    runs = [
        [len(one.prompt), len(one.chosen), 2 * len(one.prompt) + len(one.chosen), len(one.rejected)] for one in given
    ]
    columns: dict[str, Any] = {
        "input_ids": pa.array([row["input_ids"].tolist() for row in rows], IDS),
        "trained_runs": pa.array(runs, IDS),
        "seq_lengths": pa.array([row["seq_lengths"].tolist() for row in rows], IDS),
    }
    write_table(path, pa.table(columns))


def write_singles(path: Path, given: Sequence[Pair]) -> None:
    """Write both completions of each pair as rows with a label, in the format of prepare."""
    rows = [(one.prompt, side, label) for one in given for side, label in ((one.chosen, 1), (one.rejected, 0))]
    columns: dict[str, Any] = {
        "input_ids": pa.array([[*prompt, *side] for prompt, side, _ in rows], IDS),
        "trained_runs": pa.array([[len(prompt), len(side)] for prompt, side, _ in rows], IDS),
        "seq_lengths": pa.array([[len(prompt) + len(side)] for prompt, side, _ in rows], IDS),
        "label": pa.array([label for _, _, label in rows], pa.int32()),
    }
    write_table(path, pa.table(columns))


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


# ---------------------------------------------------------------- TRL


FUSED = ("log_probs", "entropy", "mean_logits", "is_top1")  # what TRL's trainers ask of its output layer
ALONE = SimpleNamespace(device=torch.device("cpu"), gather=lambda one: one, gather_for_metrics=lambda one: one)


def trl_loss(
    plan: PlannedPreference, model: Any, reference: Any, given: Sequence[Pair]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return TRL's loss of a batch of pairs, with its graph, and its metrics. For kto: of `single_rows`.

    Args:
        model, reference: with `add_fused_lm_head` of TRL.
    """
    if plan.loss_type is PreferenceLoss.KTO:
        return _kto(plan, model, reference, given)
    if plan.loss_type is PreferenceLoss.ORPO:
        from trl.experimental.orpo.orpo_trainer import ORPOTrainer

        return _without_reference(ORPOTrainer, {"beta": plan.beta}, model, given)
    if plan.loss_type is PreferenceLoss.SIMPO:
        from trl.experimental.cpo.cpo_trainer import CPOTrainer

        values = {"beta": plan.beta, "simpo_gamma": plan.gamma, "loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0}
        return _without_reference(CPOTrainer, values | {"label_smoothing": 0.0}, model, given)
    return _dpo(plan, model, reference, given)


def _trainer(kind: Any, model: Any, values: dict[str, Any]) -> Any:
    """Return a trainer of TRL without its set-up: only its loss is called."""
    trainer = object.__new__(kind)
    vars(trainer).update(
        model=model,
        accelerator=ALONE,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **values,
    )
    return trainer


def _dpo(plan: PlannedPreference, model: Any, reference: Any, given: Sequence[Pair]) -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    if plan.label_smoothing and plan.loss_type is PreferenceLoss.SIGMOID:  # TRL 1.16 has no conservative DPO
        raise ValueError("TRL has no label smoothing for sigmoid")
    trainer = _trainer(
        DPOTrainer,
        model,
        {
            "ref_model": reference,
            "beta": plan.beta,
            "label_smoothing": plan.label_smoothing,
            "loss_types": [str(plan.loss_type)],
            "loss_weights": [1.0],
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "precompute_ref_logps": False,
            "use_weighting": False,
        },
    )
    rows = [{"prompt_ids": one.prompt, "chosen_ids": one.chosen, "rejected_ids": one.rejected} for one in given]
    return _measured(trainer, trainer._compute_loss(model, DataCollatorForPreference(PAD)(rows), False))


def _kto(plan: PlannedPreference, model: Any, reference: Any, given: Sequence[Pair]) -> Any:
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

    values = {"ref_model": reference, "beta": plan.beta, "loss_type": "kto", "calculate_KL": True}
    weights = {"desirable_weight": plan.desirable_weight, "undesirable_weight": plan.undesirable_weight}
    trainer = _trainer(KTOTrainer, model, {**values, **weights, "precompute_ref_logps": False})
    rows = [
        {
            "prompt_ids": pair.prompt,
            "completion_ids": pair.chosen,
            "KL_completion_ids": given[number - 1].chosen,
            "label": row["label"] > 0,
        }
        for number, (pair, row) in enumerate(zip(given, single_rows(given), strict=True))
    ]
    return _measured(trainer, trainer._compute_loss(model, DataCollatorForUnpairedPreference(PAD)(rows), False))


def _measured(trainer: Any, loss: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    mode = "train" if trainer.model.training else "eval"
    return loss, {name: values[0] for name, values in trainer._metrics[mode].items()}


def _without_reference(kind: Any, values: dict[str, Any], model: Any, given: Sequence[Pair]) -> Any:
    trainer = _trainer(kind, model, {**values, "is_encoder_decoder": False, "padding_value": PAD, "pad_token_id": PAD})
    batch: dict[str, torch.Tensor] = {}
    for side in ("chosen", "rejected"):
        both = [labelled(one.prompt, getattr(one, side)) for one in given]
        longest = max(len(ids) for ids, _ in both)

        def filled(parts: list[Any], value: int, longest: int = longest) -> torch.Tensor:
            return torch.tensor([[*part.tolist(), *[value] * (longest - len(part))] for part in parts])

        batch[f"{side}_input_ids"] = filled([ids for ids, _ in both], PAD)
        batch[f"{side}_labels"] = filled([labels for _, labels in both], IGNORED)
        batch[f"{side}_attention_mask"] = filled([np.ones_like(ids) for ids, _ in both], 0)
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    return loss, metrics
