"""How fast this machine trains a model without GPU: one and two of its layers are run, forward and backward.

The rest is extrapolated. It takes about two seconds, and is kept per machine: the same question is measured once.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError, SpecError
from finetune_api.messages import MethodType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.plan import adapt
from finetune_trainer.prepare.plan.architecture import Architecture
from finetune_trainer.prepare.plan.built import BUILD_ERRORS, configured, quiet
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.machine import Pace
from finetune_trainer.prepare.plan.rank_load import Load
from finetune_trainer.prepare.plan.speed import ADAM_BYTES, operations

VERSION = 1  # of what is measured
DEPTHS = (1, 2)  # layers of the models that are run
DEPTH_NAMES = frozenset(
    {
        "num_hidden_layers",
        "num_layers",
        "num_decoder_layers",
        "n_layer",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
    }
)
UNTIMED = (*BUILD_ERRORS, ModelError, IndexError, NotImplementedError, MemoryError)
WORDS = 4096  # of the vocabulary of the models that are run; a larger head counts at the layers' rate
WORK = 1.5e10  # operations of one run: a larger micro-batch is run in part
LEAST = 32  # tokens of a row that is cut for it
SECONDS = 0.15  # of repetitions, for each model
REPETITIONS = 3
# Seconds on an idle core of a server: LOOPS turns of a loop (measured); from a worker's start to its first step and
# from its last step to its end, and what DeepSpeed and Trainer add to a micro-batch and to a step. The last three were
# fitted to one round of benchmarks/plan_time.py (START: 15.3 to 21.6 over five jobs) and are scaled by the first.
LOOPS, LOOP = 500_000, 0.006
START, MICRO, STEP = 18.0, 0.004, 0.012
STEPPED = 1_000_000  # parameters of the optimizer's step that is timed


@dataclass(frozen=True)
class PaceQuestion:
    """The model and the micro-batch that are timed.

    Attributes:
        rows, tokens: of a micro-batch, `tokens` on average.
        lora: LoraConfig names and values; None for all weights.
        threads: of one rank.
    """

    config: Mapping[str, Any]
    task: Task
    labels: int
    lora: Mapping[str, Any] | None
    bfloat16: bool
    rows: int
    tokens: int
    threads: int

    @property
    def method(self) -> MethodType:
        """What is trained of the model."""
        return MethodType.LORA if self.lora else MethodType.FULL

    @property
    def key(self) -> str:
        """The same for the same question on the same machine with the same torch."""
        import torch

        identity = {**asdict(self), "lora": dict(self.lora) if self.lora else None, "config": dict(self.config)}
        here = [VERSION, platform.node(), platform.processor(), platform.machine(), os.cpu_count(), torch.__version__]
        return hashlib.sha256(json.dumps([identity, here], sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Timed:
    """The measured seconds.

    Attributes:
        micro: of a micro-batch through the whole model, forward and backward.
        token: of a forward pass over one token.
        parameter: of an optimizer's step, for one parameter.
        loop: of LOOPS turns of an empty loop: how fast Python is here.
    """

    micro: float
    token: float
    parameter: float
    loop: float


def measured_pace(draft: Draft, config: Mapping[str, Any], cache: Path | None) -> Pace | None:
    """Return how fast a rank of this machine trains the model of a draft; None in a cluster, or where a GPU trains.

    Args:
        config: the model's `config.json`.
        cache: file of earlier measurements; None = measure again.
    """
    setting, train = draft.setting, draft.workload.dataset.train
    if setting.here is None or setting.machine.device == "gpu":
        return None
    question = PaceQuestion(
        config=config,
        task=setting.task,
        labels=len(draft.workload.dataset.labels),
        lora=setting.lora or None,
        bfloat16=setting.weight_bytes == 2,
        rows=draft.layout.load.micro * draft.request.sequences,
        tokens=min(draft.request.tokens, max(1, train.tokens // max(1, train.rows * draft.request.sequences))),
        threads=int(setting.here.cores) // setting.machine.world_size,
    )
    return pace_of(question, draft.workload.architecture, cache)


def pace_of(question: PaceQuestion, architecture: Architecture, cache: Path | None) -> Pace | None:
    """Return how fast a rank of this machine is for a job, measured now or before.

    An adapter that a shortened model has no place for (of layers above the second) is left out: the rate is then that
    of all weights. None where the model cannot be shortened: a plan needs no exact estimate.

    Args:
        cache: file of earlier measurements; None = measure again.
    """
    try:
        return _measured(question, architecture, cache)
    except SpecError:
        question = replace(question, lora=None)
    except UNTIMED:
        return None
    try:
        return _measured(question, architecture, cache)
    except (SpecError, *UNTIMED):
        return None


def _measured(question: PaceQuestion, architecture: Architecture, cache: Path | None) -> Pace:
    timings = _remembered(cache, question.key)
    if timings is None:
        with _threads(question.threads):
            timings = timed(question, architecture)
        if os.getloadavg()[0] <= (os.cpu_count() or 1):  # what a busy machine can do is not remembered
            _remember(cache, question.key, timings)
    load = Load(architecture, question.method, 2, 1, question.rows, question.tokens)
    slower = timings.loop / LOOP
    return Pace(
        operations=operations(load, question.tokens) / max(timings.micro, 1e-9),
        layer=0.0,
        token_layer=timings.token / max(1, architecture.layers),
        micro=MICRO * slower,
        step=STEP * slower,
        memory=ADAM_BYTES / max(timings.parameter, 1e-15),
        start=START * slower,
        measured=True,
    )


def cache_file(environ: Mapping[str, str]) -> Path:
    """Return where measurements are kept."""
    home = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(home) / "finetune-operator" / "pace.json"


def timed(question: PaceQuestion, architecture: Architecture) -> Timed:
    """Run models of one and of two layers, and extrapolate to the whole one."""
    import torch

    load = Load(architecture, question.method, 2, 1, 1, question.tokens)
    whole = operations(load, question.tokens)
    rows, tokens = _cut(question, whole * max(DEPTHS) / max(1, architecture.layers))
    with quiet(), torch.random.fork_rng(devices=[]):
        first, second = (_run(question, depth, rows, tokens) for depth in DEPTHS)
    more = max(1, second.layers - first.layers)
    layer = max(1e-9, second.micro - first.micro) / more
    rate = rows * tokens * 6 * max(1, second.weights - first.weights) / more / layer  # operations a second
    beyond = architecture.layers - first.layers
    head = max(0, architecture.head - first.head) * 6 * rows * tokens / rate
    micro = (first.micro + beyond * layer + head) * question.rows * question.tokens / (rows * tokens)
    token = first.token + beyond * max(0.0, second.token - first.token) / more
    return Timed(micro, token, _adam(), _mean(_loop))


def _cut(question: PaceQuestion, work: float) -> tuple[int, int]:
    """Return how many rows and tokens of a micro-batch are run, where one row takes `work` operations."""
    rows = max(1, min(question.rows, int(WORK / work)))
    if work <= WORK:
        return rows, question.tokens
    return 1, min(question.tokens, max(LEAST, int(question.tokens * WORK / work)))


@dataclass(frozen=True)
class _Ran:
    """A shortened model: its layers, weights of its layers and of its head, seconds of a micro-batch and of a token."""

    layers: int
    weights: int
    head: int
    micro: float
    token: float


def _run(question: PaceQuestion, depth: int, rows: int, tokens: int) -> _Ran:
    import torch

    model = _model(question, depth)
    ids = torch.randint(1, min(1000, int(model.config.get_text_config().vocab_size)), (rows, tokens))
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if spec_of(question.task).named:
        given["labels"] = torch.zeros(rows if spec_of(question.task).labelled else ids.shape, dtype=torch.long)
    if spec_of(question.task).compares:
        del given["labels"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def train() -> None:
        outputs = model(**given)
        loss = outputs.loss if "labels" in given else outputs.last_hidden_state.float().square().mean()
        loss.backward()
        for parameter in trained:
            parameter.grad = None

    def forward() -> None:
        with torch.no_grad():
            model(**{name: value[:1, :1] if value.dim() > 1 else value[:1] for name, value in given.items()})

    head = model.get_output_embeddings()
    size = head.weight.numel() if head is not None else 0
    weights = sum(one.numel() for name, one in model.named_parameters() if one.dim() > 1 and "embed" not in name)
    return _Ran(_depth(model), weights, size, _mean(train), _mean(forward))


def _model(question: PaceQuestion, depth: int) -> Any:
    import torch

    values = _shortened(question.config, depth)
    made, auto = configured(values, question.task, max(2, question.labels))
    made.use_cache = False
    dtype = torch.bfloat16 if question.bfloat16 else torch.float32
    model = auto.from_config(made, dtype=dtype).train()
    if question.lora:
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        lora = {name: value for name, value in question.lora.items() if name not in _OF_LAYERS}
        model = adapt.adapted(model, question.task, lora, linear)
    return model


# they name layers that a shortened model lacks
_OF_LAYERS = frozenset({"layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"})


def _shortened(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    values = dict(config)
    for name in DEPTH_NAMES & values.keys():
        if isinstance(values[name], int):
            values[name] = min(depth, values[name])
    if isinstance(values.get("layer_types"), list):
        values["layer_types"] = values["layer_types"][: values.get("num_hidden_layers", depth)]
    if isinstance(values.get("vocab_size"), int):
        values["vocab_size"] = min(values["vocab_size"], WORDS)
    return values


def _depth(model: Any) -> int:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return sum(isinstance(module, GradientCheckpointingLayer) for module in model.modules()) or 1


def _adam() -> float:
    import torch

    weight = torch.nn.Parameter(torch.zeros(STEPPED))
    weight.grad = torch.ones(STEPPED)
    optimizer = torch.optim.AdamW([weight], lr=1e-6)
    return _mean(optimizer.step) / STEPPED


def _mean(run: Callable[[], object]) -> float:
    """Return the mean seconds of some repetitions after a warm-up, with whatever else this machine does meanwhile."""
    run()
    began, times = time.perf_counter(), 0
    while times < REPETITIONS or (time.perf_counter() - began < SECONDS and times < 10 * REPETITIONS):
        run()
        times += 1
    return (time.perf_counter() - began) / times


def _loop() -> None:
    for _ in range(LOOPS):
        pass


@contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _remembered(cache: Path | None, key: str) -> Timed | None:
    if cache is None:
        return None
    try:
        return Timed(**json.loads(cache.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(cache: Path | None, key: str, timings: Timed) -> None:
    if cache is None:
        return
    with suppress(OSError):  # a cache that cannot be written costs two seconds a plan
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = json.loads(cache.read_text())
        except (OSError, ValueError):
            known = {}
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**known, key: asdict(timings)}))
        partial.replace(cache)
