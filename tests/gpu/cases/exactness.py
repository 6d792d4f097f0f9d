"""Cases: the loss does not depend on how rows lie in a batch, on recomputation, or on a stop in between."""

from pathlib import Path
from typing import Any

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.engine import deepspeed_config
from tests.gpu.case import Bench, Case
from tests.gpu.models import SMALL, TINY, make_llama
from tests.gpu.ranks import Trained, in_child, train
from tests.local.harness import make_plan, write_dataset

FLOAT32 = 1e-5  # relative, of a mean loss; one of every ten thousand bits of a float32's mantissa
BFLOAT16 = 5e-3  # relative; bfloat16 has 8 bits of mantissa, sums are kept in float32
DISTURBED = {True: 1e-5, False: 2e-2}  # by whether it ran on a CPU: relative, of every loss after a resume
STEPS, HALF = 12, 8  # of a training, and the checkpoint that it goes on from


def batches(bench: Bench) -> None:
    """Compare the mean loss of one set of rows: a row at a time, padded, flat, and packed into longer rows."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(2)
    folder = make_llama(bench.folder / "model", TINY if bench.tiny else SMALL)
    rows = documents(4 if bench.tiny else 24, 60 if bench.tiny else 400)
    bands = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}
    for dtype, band in bands.items():
        name = str(dtype).removeprefix("torch.")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        seen = ways(model, rows, device)
        bench.note(**{f"{name} {way}": round(loss, 7) for way, loss in seen.items()})
        for way in ("padded", "flat", "packed"):
            bench.within(f"{name} {way}", seen[way], seen["alone"], relative=band)


def documents(count: int, longest: int) -> list[dict[str, Any]]:
    """Return rows of random tokens and lengths; the first third of each is not trained."""
    import numpy as np

    source = np.random.default_rng(1)
    rows = []
    for length in source.integers(8, longest, count):
        ids = source.integers(5, 250, length).astype(np.int32)
        labels = ids.copy()
        labels[: length // 3] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def ways(model: Any, rows: list[dict[str, Any]], device: str) -> dict[str, float]:
    """Return the mean loss over all trained tokens, by the way the rows lie in a batch."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    from finetune_trainer.worker.attention import use_segmented
    from finetune_trainer.worker.batches.flat import FlatTokens
    from finetune_trainer.worker.batches.padded import PaddedTokens
    from finetune_trainer.worker.tasks import task_of

    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, world=1)
    total = items = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"].tolist()], device=device)).logits[0, :-1].float()
            labels = torch.tensor(row["labels"].tolist(), device=device)[1:]
            total += float(cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            items += int((labels != -100).sum())
        seen = {"alone": total / items}
        head = task_of(plan).loss(model)
        seen["padded"] = mean(head(model, placed(PaddedTokens(0)(rows), device)))
        use_segmented(model)
        seen["flat"] = mean(head(model, placed(FlatTokens()(rows), device)))
        packs = []
        for first in range(0, len(rows), 2):
            pair = rows[first : first + 2]
            joined = {name: np.concatenate([row[name] for row in pair]) for name in ("input_ids", "labels")}
            packs.append(joined | {"seq_lengths": np.array([len(row["input_ids"]) for row in pair])})
        seen["packed"] = mean(head(model, placed(FlatTokens()(packs), device)))
    return seen


def mean(summed: Any) -> float:
    """Return the mean loss of a batch."""
    return float(summed.total) / int(summed.items)


def placed(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """Return a batch with its tensors on a device."""
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}


def kernels(bench: Bench) -> None:
    """Compare attention and its gradients: by document, by torch's flash kernel, by the formula in float32."""
    import torch

    from finetune_trainer.worker.attention import Documents, by_document, by_flash, has_flash

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(2)
    lengths = (40, 40, 17, 9) if bench.tiny else (900, 900, 333, 65, 64)
    documents = Documents(((2, lengths[0]), *((1, length) for length in lengths[2:])), lengths[0])
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=device)
    for size, groups, window in ((64, 4, None), (128, 1, None), (64, 2, 16)):
        torch.manual_seed(0)
        given = [torch.randn(1, heads, sum(lengths), size, device=device) for heads in (4, groups, groups)]
        expected = with_gradients(lambda *parts, window=window: plain(*parts, lengths, window), given)
        for dtype, band in ((torch.float32, FLOAT32), (torch.bfloat16, 2e-2)):
            parts = [part.to(dtype) for part in given]
            about = f"{str(dtype).removeprefix('torch.')} head {size} x {groups} window {window}"
            made = with_gradients(lambda *p, w=window: by_document(*p, documents, 0.0, None, w), parts)
            far = distance(made, expected)
            bench.note(**{f"by document, {about}": far})
            bench.expect(far <= band, f"by document, {about}: {far:.2g} from the plain formula, at most {band:.0e}")
            if has_flash(parts[0]):
                flash = with_gradients(lambda *p, w=window: by_flash(*p, starts, lengths[0], None, w), parts)
                far = distance(flash, expected)
                bench.note(**{f"varlen_attn, {about}": far})
                bench.expect(far <= band, f"varlen_attn, {about}: {far:.2g} from the plain formula, at most {band:.0e}")
    if device == "cpu":
        bench.note(varlen_attn="not on a CPU")


def plain(query: Any, key: Any, value: Any, lengths: tuple[int, ...], window: int | None) -> Any:
    """Return attention as its formula says, document by document: [1, tokens, heads, head_dim]."""
    import torch

    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    made = []
    for own, others, values in zip(*(part.split(lengths, 2) for part in (query, key, value)), strict=True):
        scores = own @ others.transpose(-1, -2) / own.shape[-1] ** 0.5
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        seen = seen if window is None else seen.triu(1 - window)
        made.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values)
    return torch.cat(made, 2).transpose(1, 2)


def with_gradients(attend: Any, given: list[Any]) -> list[Any]:
    """Return the output and the gradients of query, key and value, for one fixed gradient of the output."""
    import torch

    parts = [part.detach().clone().requires_grad_() for part in given]
    made = attend(*parts)
    torch.manual_seed(1)
    made.backward(torch.randn(made.shape, device=made.device).to(made.dtype))
    return [made.detach(), *(part.grad for part in parts)]


def distance(seen: list[Any], expected: list[Any]) -> float:
    """Return the largest relative distance, |seen - expected| / |expected|, of the tensors."""
    pairs = zip(seen, expected, strict=True)
    return float(f"{max(float((one.float() - other).norm() / other.norm()) for one, other in pairs):.3g}")


def recomputation(bench: Bench) -> None:
    """Compare every loss of a training with and without recomputed activations."""
    kept, recomputed = (trained(bench, name, activation_checkpointing=flag) for name, flag in RECOMPUTED.items())
    first, far = (farthest(kept, recomputed, steps) for steps in (1, STEPS))
    peaks = {"kept": kept.peak_bytes(), "recomputed": recomputed.peak_bytes()}
    bench.note(steps=STEPS, first_difference=first, largest_difference=far, last_loss=kept.losses().get(STEPS))
    bench.note(**{f"{name}_mib": size >> 20 for name, size in peaks.items()})
    band = DISTURBED[bench.tiny]
    bench.expect(first <= FLOAT32, f"the first loss with recomputed activations differs by {first:.2g}, at most 1e-5")
    bench.expect(far <= band, f"losses with recomputed activations differ by {far:.2g}, at most {band:.0e}")
    if not bench.tiny:
        bench.expect(peaks["recomputed"] < peaks["kept"], f"recomputing saves no memory: {peaks}")


RECOMPUTED = {"kept": False, "recomputed": True}


def disturbed(bench: Bench) -> None:
    """Compare the losses after a resume with those of the run that was never stopped."""
    whole = trained(bench, "whole")
    stopped = bench.folder / "whole" / "node-0" / checkpoint_name(HALF, 1)
    again = trained(bench, "again", resume=stopped)
    far = farthest(whole, again)
    band = DISTURBED[bench.tiny]
    bench.note(resumed_at=HALF, steps_compared=STEPS - HALF, largest_difference=far, bits_equal=far == 0.0)
    bench.expect(set(again.losses()) == set(range(HALF + 1, STEPS + 1)), f"steps after the resume: {again.losses()}")
    bench.expect(far <= band, f"losses after the resume differ by {far:.2g}, at most {band:.0e}")


def trained(bench: Bench, name: str, resume: Path | None = None, **training: Any) -> Trained:
    """Return a LoRA training of one rank; model and rows are made once a case."""
    model = bench.folder / "model"
    if not model.exists():
        in_child(lambda: make_llama(model, TINY if bench.tiny else SMALL))
        write_dataset(bench.folder / "data", Task.CAUSAL_LM)
    made = train(plan_of(bench.tiny, training), model, bench.folder / "data", bench.folder / name, resume)
    print(made.log, flush=True)
    bench.expect(made.code == ExitCode.OK, f"the training {name} ended with {made.code}: {made.errors()}")
    return made


def plan_of(tiny: bool, training: dict[str, Any]) -> Plan:
    """Return a plan of one rank, ZeRO-2, in the precision of a real run."""
    given = ({} if tiny else {"bf16": True}) | {name: value for name, value in training.items() if value}
    changes = {"deepspeed": deepspeed_config(2, None, given), "training": given, "max_steps": STEPS}
    return make_plan(Task.CAUSAL_LM, MethodType.LORA, world=1, **changes)


def farthest(one: Trained, other: Trained, last: int = STEPS) -> float:
    """Return the largest relative difference of the losses of the steps that both have made, up to a last one."""
    first, second = one.losses(), other.losses()
    shared = [step for step in first if step in second and step <= last]
    return float(f"{max((abs(first[s] - second[s]) / first[s] for s in shared), default=float('inf')):.3g}")


CASES = (
    Case(
        "exactness/batches",
        "one loss for rows alone, padded, flat and packed: within 1e-5 in float32, 5e-3 in bfloat16",
        batches,
        60,
        alone=False,
    ),
    Case(
        "exactness/attention",
        "documents, varlen_attn and the formula agree, gradients too: within 1e-5 in float32, 2e-2 in bfloat16",
        kernels,
        60,
        alone=False,
    ),
    Case(
        "exactness/recomputation",
        "recomputed activations leave the first loss as it is (1e-5), the others within 2e-2 on a GPU, 1e-5 on a CPU",
        recomputation,
        90,
        alone=False,
    ),
    Case(
        "exactness/disturbed",
        "losses after a resume are those of the undisturbed run: within 2e-2 on a GPU, 1e-5 on a CPU",
        disturbed,
        90,
        alone=False,
    ),
)
