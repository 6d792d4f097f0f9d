"""Cases: `finetune run` from a job file to an artifact, with faults in between."""

import csv
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import ExitCode
from finetune_api.messages import Task
from tests.gpu.case import Bench, Case
from tests.gpu.jobs import Watched, job_of, nvidia_files
from tests.gpu.models import HALF_BILLION, SMALL, TINY, make_bert, make_llama, make_t5
from tests.gpu.ranks import in_child
from tests.support.vanilla import AUTOS

STOPPED = 130
INTERVAL = 10  # steps between checkpoints
EXACT = 1e-4  # of a loss in float32, beside vanilla libraries'
BAND = 2e-2  # of a loss in bfloat16: weights and activations have 8 bits, batches are summed in another order
QUANTIZED_BAND = 0.2  # of the loss of a QLoRA adapter on its base in 16 bits, which it was not trained on


def lora(bench: Bench) -> None:
    """Run LoRA with a worker killed and the command stopped in mid-run, and load the adapter with vanilla peft."""
    steps, kill_at, stop_at = (60, 15, 35) if bench.tiny else (240, 60, 140)
    model = bench.folder / "model"
    in_child(lambda: make_llama(model, TINY if bench.tiny else HALF_BILLION))
    spec = spec_of(bench, model, sentences(bench), steps, {"type": "lora"}) | {"deepspeed": {"stage": 2}}
    if not bench.tiny:
        spec["training"] |= {"bf16": True}
    job = job_of(bench.folder / "job", spec, tiny=bench.tiny)

    began = time.monotonic()
    run = Watched.start(job)
    run.wait("the first step", lambda seen: seen.step > 0)
    bench.note(seconds_to_first_step=round(time.monotonic() - began, 1))
    before = run.wait("a step to be killed after", lambda seen: seen.step >= kill_at and bool(seen.checkpoints))
    open_files = nvidia_files(run.zygote())
    bench.note(zygote_nvidia_files=len(open_files))
    bench.expect(not open_files, f"the zygote has touched the GPU: {open_files}")
    at = run.kill_worker()
    run.wait("a step after the worker was killed", lambda seen: stepped(seen, before.generation))
    bench.note(killed_to_next_step_seconds=round(time.monotonic() - at, 2))

    last = run.wait("a step to be stopped after", lambda seen: seen.step >= stop_at).step
    at = time.monotonic()
    code = run.stop()
    saved = run.committed()[-1]
    bench.note(stop_seconds=round(time.monotonic() - at, 2), stopped_at=last, saved_step=saved)
    bench.note(steps_lost_by_stop=max(0, last - saved))
    bench.expect(code == STOPPED, f"the stopped command ended with {code}, not {STOPPED}: {job.output[-1500:]}")
    bench.expect(saved >= last, f"stopped after step {last}, but the newest checkpoint is of step {saved}")

    again = Watched.start(job)
    finish(bench, again, BAND)
    recovered = [one for one in again.done().recoveries if one.lost_steps]
    bench.note(steps_lost_by_kill=max((one.lost_steps for one in recovered), default=0))
    bench.expect(all(one.lost_steps <= INTERVAL for one in recovered), f"a kill cost more than {INTERVAL} steps")


def stepped(seen: Any, generation: int) -> bool:
    """Whether a later generation has made a step of its own."""
    resumed = seen.recoveries[-1].resumed_step if seen.recoveries else None
    return seen.generation > generation and resumed is not None and seen.step > resumed


@dataclass(frozen=True)
class Kind:
    """A method, task and family: how its model and rows are made, and what is added to the job."""

    method: str
    stage: int
    task: Task
    model: Callable[[Path, bool], Path]
    rows: Callable[[Bench], Path]
    band: float = BAND


def kind(made: Kind) -> Callable[[Bench], None]:
    """Return the case of a kind: trained, its worker killed, resumed, exported, loaded by vanilla libraries."""

    def run(bench: Bench) -> None:
        steps, kill_at = (30, 12) if bench.tiny else (150, 20)
        model = bench.folder / "model"
        in_child(lambda: made.model(model, bench.tiny))
        spec = spec_of(bench, model, made.rows(bench), steps, {"type": made.method})
        spec |= {"task": made.task.value, "deepspeed": {"stage": made.stage}}
        if not bench.tiny:
            spec["training"] |= {"bf16": True}
        watched = Watched.start(job_of(bench.folder / "job", spec, tiny=bench.tiny))
        watched.wait("a committed checkpoint", lambda seen: seen.step >= kill_at and bool(seen.checkpoints))
        watched.kill_worker()
        finish(bench, watched, made.band, made.task)
        resumed = [one.resumed_step for one in watched.done().recoveries]
        bench.note(resumed_at=resumed[0] if resumed else None)
        bench.expect(bool(resumed) and bool(resumed[0]), f"the worker was killed, and resumed at {resumed}")

    return run


def finish(bench: Bench, run: Watched, band: float, task: Task = Task.CAUSAL_LM) -> None:
    """Wait for the run's end; compare its artifact's loss in vanilla libraries with what it reported."""
    code = run.process.wait(600)
    assert code == ExitCode.OK, f"`finetune run` ended with {code}:\n{run.job.output[-3000:]}"
    bench.expect(run.job.result["state"] == "Succeeded", f"the run ended as {run.job.result['state']}")
    done = run.done()
    losses = [one.values["eval_loss"] for one in done.evals]
    bench.note(steps=done.step, first_eval_loss=round(losses[0], 4), last_eval_loss=round(losses[-1], 4))
    bench.note(tokens_per_second=round(done.tokens_per_second), peak_mib=done.memory_bytes >> 20)
    bench.expect(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    folder = run.job.artifact(bench.folder / "artifact")
    [artifact] = run.job.result["artifacts"]
    expected = artifact["metrics"]["eval_loss"]
    seen = vanilla(run, folder, task)
    bench.note(reported_eval_loss=round(expected, 5), vanilla_eval_loss=round(seen, 5))
    exact = bench.tiny and band != QUANTIZED_BAND  # float32 on a CPU
    bench.within("vanilla_loss", seen, expected, absolute=EXACT if exact else band)


def vanilla(run: Watched, folder: Path, task: Task) -> float:
    """Return the artifact's loss as plain transformers and peft compute it, on the GPU where there is one."""
    import torch

    from tests.support.vanilla_loss import loss_of

    torch.set_num_threads(2)
    options: dict[str, Any] = {}
    if task is Task.CLASSIFICATION and (folder / "adapter_config.json").exists():
        options = {"num_labels": len(json.loads((folder / "labels.json").read_text()))}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return loss_of(AUTOS[task], str(folder), options, str(run.rows()), device)


def spec_of(bench: Bench, model: Path, rows: Path, steps: int, method: dict[str, Any]) -> dict[str, Any]:
    """Return a job's spec without storage."""
    training = {"max_steps": steps, "global_batch_size": 8, "eval_steps": steps // 2}
    return {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{rows}", "eval": {"split": 0.1}},
        "method": method,
        "training": {**training, "learning_rate": 2e-3 if bench.tiny else 5e-4},
        "checkpoint": {"everySteps": INTERVAL},
    }


# ---------------------------------------------------------------- rows


def sentences(bench: Bench) -> Path:
    """Write sums in words, which a model can learn; on a GPU some hundred tokens a row."""
    source = random.Random(3)
    count, length = (160, 2) if bench.tiny else (2000, 12)
    path = bench.folder / "rows.jsonl"
    with path.open("w") as file:
        for _ in range(count):
            pairs = [(source.randrange(50), source.randrange(50)) for _ in range(length)]
            text = " ".join(f"The sum of {one} and {other} is {one + other}." for one, other in pairs)
            file.write(json.dumps({"text": text}) + "\n")
    return path


def labelled(bench: Bench) -> Path:
    """Write texts whose words tell their label."""
    words = {
        "good": ["great", "lovely", "best"],
        "bad": ["awful", "poor", "worst"],
        "post": ["order", "invoice", "price"],
    }
    source = random.Random(5)
    path = bench.folder / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(240 if bench.tiny else 2000):
            label = source.choice(list(words))
            writer.writerow([" ".join(source.choices([*words[label], "the", "a"], k=source.randrange(4, 24))), label])
    return path


def pairs(bench: Bench) -> Path:
    """Write prompts with the answer that follows from them."""
    source = random.Random(7)
    path = bench.folder / "rows.jsonl"
    with path.open("w") as file:
        for _ in range(160 if bench.tiny else 2000):
            word = source.choice(["great", "poor", "invoice", "order", "price", "happy"])
            prompt = " ".join(["The word is", *source.choices(["the", "a", "new"], k=source.randrange(2, 20)), word])
            file.write(json.dumps({"prompt": prompt, "completion": f"Yes {word}"}) + "\n")
    return path


KINDS = {
    "full ZeRO-3": Kind("full", 3, Task.CAUSAL_LM, lambda at, tiny: make_llama(at, TINY if tiny else SMALL), sentences),
    "classification": Kind("full", 2, Task.CLASSIFICATION, make_bert, labelled),
    "seq2seq": Kind("full", 2, Task.SEQ2SEQ, make_t5, pairs),
    "QLoRA": Kind(
        "qlora",
        2,
        Task.CAUSAL_LM,
        lambda at, tiny: make_llama(at, TINY if tiny else HALF_BILLION),
        sentences,
        QUANTIZED_BAND,
    ),
}
LORA = Case(
    "end-to-end/LoRA with faults",
    "Succeeded; a kill costs at most 10 steps, the zygote has no file of the driver open; a stop costs 0 steps; "
    "vanilla peft has the reported eval loss within 2e-2 (1e-4 on a CPU)",
    lora,
    200,
)
OTHERS = tuple(
    Case(
        f"end-to-end/{name}",
        f"Succeeded after a killed worker; the loss falls; vanilla libraries have the eval loss within {made.band:g}"
        f"{'' if made.band == QUANTIZED_BAND else ' (1e-4 on a CPU)'}",
        kind(made),
        180,
        alone=False,
    )
    for name, made in KINDS.items()
)
