"""Trained tokens per second on CPU, two threads: ours beside TRL's SFTTrainer and transformers' Trainer.

A LLaMA of 4 layers, 256 wide, with a vocabulary of 4,096; conversations of 16 to 512 tokens (log-normal, median 120),
loss on the assistant's turns; 8 rows a step in float32, or as many tokens packed. Ours runs as a worker does, on
DeepSpeed; the peers run as their users would, with the settings of `contenders.py`. TRL packs to sequences of 512: once
two of them a step (the tokens of 8 rows), and once eight of them, as for a user who turns packing on and keeps the
batch size. Every run is a process of its own, forked from one that has imported everything; contenders take turns.
Tokens are those of the rows, without padding; the first steps are not timed. A contender that trains the same 8 rows at
each step has the same losses as ours.

    python benchmarks/throughput.py [--rounds 3] [--steps 25] [--only NAME ...]

With `--preference`: DPO beside TRL's DPOTrainer, with LoRA and with all weights (`preference_contenders.py`); 8 pairs a
step. The seconds of ours with all weights have their share of the pass that computes the reference.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chat_rows import VOCABULARY, ChatRow, chat_rows, write_arrow  # noqa: E402
from benchmarks.contenders import BATCH, CONTENDERS, PEERS, SEED, SHAPE, Work, settings  # noqa: E402
from benchmarks.preference_contenders import PREFERENCE_CONTENDERS, pair_work  # noqa: E402

ROWS = 2000
UNTIMED = 2  # steps; the first ones fill caches
LIBRARIES = ("torch", "transformers", "trl", "deepspeed", "accelerate", "peft", "datasets")
RECORD = Path(__file__).with_name("throughput.json")
PREFERENCE_RECORD = Path(__file__).with_name("preference_throughput.json")
Contenders = Mapping[str, Callable[[Any, Path, int], None]]
SAME_BATCHES = ("trl_padded", "trainer_padded")


@dataclass(frozen=True)
class Sample:
    """One run: losses by step, and seconds, processor seconds and tokens of the timed steps."""

    losses: list[float]
    seconds: float
    cpu_seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Return the tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2, help="1 for a machine that does other things as well")
    parser.add_argument("--only", nargs="*", help="some of them; nothing is recorded")
    parser.add_argument("--preference", action="store_true", help="DPO in place of supervised fine-tuning")
    options = parser.parse_args()
    contenders: Contenders = PREFERENCE_CONTENDERS if options.preference else CONTENDERS
    names = options.only or list(contenders)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    imports()
    with tempfile.TemporaryDirectory() as name:
        given = input_of(Path(name), options)
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for turn in range(options.rounds):
            for contender in names[turn % len(names) :] + names[: turn % len(names)]:
                samples[contender].append(run(contenders[contender], given, Path(name)))
                print(f"{contender:<16}{samples[contender][-1].rate:>8,.0f} tokens/s", file=sys.stderr, flush=True)
    result = (preference_ratios if options.preference else ratios)(samples)
    if not options.only:
        keep(samples, result, options)
    print(json.dumps(result))


def imports() -> None:
    """Import all slow libraries before the first fork."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import datasets
    import trl  # noqa: F401
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: F401

    import finetune_trainer.worker.rank_run  # noqa: F401

    datasets.disable_progress_bars()


def work_of(folder: Path, steps: int, threads: int) -> tuple[Work, list[ChatRow]]:
    """Return the model, the data set, and the rows in the order of our run; and all rows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from finetune_trainer.worker.sampling import shuffled

    torch.set_num_threads(1)  # no pool of threads before a fork
    tokenizer, rows = chat_rows(ROWS)
    (folder / "data").mkdir()
    write_arrow(folder / "data" / "train.arrow", rows)
    shape = dict(SHAPE)
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.pop("model_type"), vocab_size=VOCABULARY, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    fast.save_pretrained(folder / "model")
    order = shuffled(ROWS, SEED, 0)[: steps * BATCH]
    return Work(folder / "model", folder / "data", tokenizer, [rows[row] for row in order], steps, threads), rows


@dataclass(frozen=True)
class Input:
    """The input of a contender: `given` is what its function takes; tokens of each step, in the order of our run."""

    given: Any
    tokens: list[int]


def input_of(folder: Path, options: argparse.Namespace) -> Input:
    """Return the input of all contenders."""
    from finetune_trainer.worker.sampling import shuffled

    work, rows = work_of(folder, options.steps, options.threads)
    if not options.preference:
        return Input(work, tokens_of(work))
    given = pair_work(work, rows, lambda count: shuffled(count, SEED, 0).tolist())
    return Input(given, given.tokens)


def run(contender: Callable[[Any, Path, int], None], given: Input, folder: Path) -> Sample:
    """Run a contender once in a process of its own."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        child(contender, given.given, scratch, writing)
    os.close(writing)
    losses, arrived, used = [], [], []
    phases: dict[str, tuple[float, float]] = {}
    with os.fdopen(reading) as lines:
        for line in lines:
            event = json.loads(line)
            if event["event"] == "phase":
                phases.setdefault(event["phase"], (time.perf_counter(), cpu_seconds(pid)))
            if event["event"] == "step":
                arrived.append(time.perf_counter())
                used.append(cpu_seconds(pid))
                losses.append(event["values"]["loss"])
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(f"a contender failed\n{(scratch / 'log').read_text()[-4000:]}")
    counts = scratch / "tokens.json"
    tokens = json.loads(counts.read_text()) if counts.exists() else given.tokens
    timed = sum(tokens[UNTIMED : len(losses)])
    seconds, cpu = (clock[-1] - clock[UNTIMED - 1] for clock in (arrived, used))
    if "reference" in phases:  # computed once for all steps
        share = timed / sum(tokens[: len(losses)])
        wall, used_up = (end - start for start, end in zip(phases["reference"], phases["train"], strict=True))
        seconds, cpu = seconds + share * wall, cpu + share * used_up
    return Sample(losses, seconds, cpu, timed)


def cpu_seconds(pid: int) -> float:
    """Return the processor seconds of a process, which other load on the machine disturbs little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child(contender: Callable[[Any, Path, int], None], given: Any, scratch: Path, pipe: int) -> None:
    """Run a contender to the end and exit."""
    code = 1
    log = os.open(scratch / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        contender(given, scratch, pipe)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tokens_of(work: Work) -> list[int]:
    """Return the tokens of each step, in the order of our run."""
    lengths = [len(row.input_ids) for row in work.rows]
    return [sum(lengths[at : at + BATCH]) for at in range(0, len(lengths), BATCH)]


def show(samples: dict[str, list[Sample]]) -> dict[str, float]:
    """Print a table, and return the medians of the rates."""
    heading = f"{'':<16}{'tokens/s':>9}{'min':>8}{'max':>8}{'per CPU s':>10}{'steps':>7}{'tokens':>9}"
    print(f"{heading}{'loss of the first, middle, last step':>40}")
    speed = {name: statistics.median(sample.rate for sample in taken) for name, taken in samples.items()}
    for name, taken in samples.items():
        rates = [sample.rate for sample in taken]
        losses = taken[0].losses
        shown = "  ".join(f"{losses[at]:.5f}" for at in (0, len(losses) // 2, -1))
        line = f"{name:<16}{speed[name]:>9,.0f}{min(rates):>8,.0f}{max(rates):>8,.0f}"
        line += f"{per_cpu(taken):>10,.0f}"
        print(f"{line}{len(losses):>7}{taken[0].tokens:>9,}{shown:>40}")
    return speed


def per_cpu(taken: list[Sample]) -> float:
    """Return the median of tokens per processor second, which other load on the machine disturbs little."""
    return statistics.median(sample.tokens / sample.cpu_seconds for sample in taken)


def preference_ratios(samples: dict[str, list[Sample]]) -> dict[str, float | None]:
    """Print a table, and return the ratios of medians of DPO, and the largest difference of a step's losses."""
    speed = show(samples)
    result: dict[str, float | None] = {}
    for method in ("lora", "full"):
        ours, theirs = f"ours_{method}", f"trl_{method}"
        if ours in samples and theirs in samples:
            both = zip(samples[ours][0].losses, samples[theirs][0].losses, strict=True)
            result[f"ratio_trl_{method}"] = round(speed[ours] / speed[theirs], 3)
            result[f"ratio_trl_{method}_per_cpu_second"] = round(per_cpu(samples[ours]) / per_cpu(samples[theirs]), 3)
            result[f"loss_difference_{method}"] = float(f"{max(abs(one - other) for one, other in both):.2e}")
    return result


def ratios(samples: dict[str, list[Sample]]) -> dict[str, float | None]:
    """Print a table, and return the ratios of medians."""
    speed = show(samples)
    ratio = {name: round(speed["ours"] / speed[name], 3) for name in speed if "ours" in speed}
    apart = [
        abs(our - their)
        for name in SAME_BATCHES
        if name in samples and "ours" in samples
        for our, their in zip(samples["ours"][0].losses, samples[name][0].losses, strict=True)
    ]
    peers = [name for name in PEERS if name in samples]
    return {
        "ratio_trl_packed": ratio.get("trl_packed"),
        "ratio_trl_padded": ratio.get("trl_padded"),
        "ratio_trl_packed_8": ratio.get("trl_packed_8"),
        "ratio_best_peer": min((ratio[name] for name in peers if name in ratio), default=None),
        "loss_difference": float(f"{max(apart):.2e}") if apart else None,
    }


def keep(samples: dict[str, list[Sample]], result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the raw figures beside this file."""
    flag = " --preference" if options.preference else ""
    record = {
        "result": result,
        "tokens_per_second": {name: [round(sample.rate, 1) for sample in taken] for name, taken in samples.items()},
        "seconds": {name: [round(sample.seconds, 3) for sample in taken] for name, taken in samples.items()},
        "cpu_seconds": {name: [round(sample.cpu_seconds, 3) for sample in taken] for name, taken in samples.items()},
        "tokens": {name: taken[0].tokens for name, taken in samples.items()},
        "losses": {name: taken[0].losses for name, taken in samples.items()},
        "settings": settings(Path("-"), options.steps)
        if options.preference
        else {name: settings(Path("-"), options.steps, **changes) for name, changes in PEERS.items()},
        "command": f"python benchmarks/throughput.py{flag} --rounds {options.rounds} --steps {options.steps}",
        "threads": options.threads,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cpu": cpu(),
    }
    (PREFERENCE_RECORD if options.preference else RECORD).write_text(json.dumps(record, indent=1) + "\n")


def cpu() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
