"""What a tiny model goes through: the worker's own code, on one rank, then transformers and PEFT alone."""

import math
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from finetune_api.contract import ExitCode, checkpoint_name
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, ProblemType, SplitFacts
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.model.families import positions_of
from finetune_trainer.probe.machine_faults import fault_of
from finetune_trainer.probe.question import ProbeAnswer, ProbeQuestion, ProbeStage, excluding
from finetune_trainer.probe.reloaded import reloaded_loss
from finetune_trainer.probe.tiny_adapter import tiny_adapter
from finetune_trainer.probe.tiny_model import LABELS, ROWS, TinyModel, make_model, write_rows
from finetune_trainer.process.orders import WorkerEvent, WorkerOrder
from finetune_trainer.worker.arrow_rows import load_split
from finetune_trainer.worker.batches.masking import EVALUATED
from finetune_trainer.worker.models.heads import auto_class
from finetune_trainer.worker.rank_run import load_parts, train
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.tasks import task_of

STEPS, GLOBAL_BATCH = 2, 4
ANSWERS = {"generate": 2, "max_new_tokens": 3, "samples": 0}
MOST_RESERVED = 8  # positions without a token
TOLERANCE = 1e-3  # of losses in float32 that were computed with other batches


def try_every_stage(question: ProbeQuestion, folder: Path, enter: Callable[[ProbeStage], None]) -> ProbeAnswer:
    """Let a tiny model go through every stage.

    Args:
        folder: an empty folder.
        enter: called at the beginning of each stage.

    Raises:
        Exception: whatever the libraries raise in the stage that was entered last.
    """
    torch.set_num_threads(1)
    enter(ProbeStage.SHRINK)
    tiny = make_model(question, folder / "model")
    write_rows(question, tiny, folder / "data")
    enter(ProbeStage.POSITIONS)
    reserved = _reserved(question, tiny)
    order = _order(question, tiny, folder, reserved)
    enter(ProbeStage.STEP)
    unreached = _unreached(order)
    if unreached and order.plan.lora.get("target_modules") == "all-linear":
        lora = {**order.plan.lora, "exclude_modules": excluding(unreached)}
        order = order.model_copy(update={"plan": order.plan.model_copy(update={"lora": lora})})
    enter(ProbeStage.ENGINE)
    loss = _trained_loss(order, folder / "events")
    enter(ProbeStage.RELOAD)
    # under ZeRO-3 it would shard what is loaded
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    made = Path(order.checkpoints) / checkpoint_name(STEPS, order.generation)
    again = reloaded_loss(order, made)
    if not _same(again, loss):
        raise ArithmeticError(_difference(order, made, loss, again))
    return ProbeAnswer(reserved=reserved, unreached=unreached)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _difference(order: WorkerOrder, made: Path, loss: float, again: float) -> str:
    """Return why a result has another loss than the evaluation had: T5Gemma's classifier reads the longest row of a
    batch, which has no padding, at another token than the others."""
    if spec_of(order.plan.task).labelled and not _same(padded := reloaded_loss(order, made, padding=1), again):
        return (
            "its class in transformers answers otherwise where padding follows a row, so the answer depends on "
            f"the rows beside it: the loss is {padded:.6g} with one token of padding, and {again:.6g} without"
        )
    return f"the evaluation's loss was {loss:.6g}, and the loaded result's is {again:.6g}"


def _reserved(question: ProbeQuestion, tiny: TinyModel) -> int:
    """Return by how many tokens the longest row is shorter than the configuration's number of positions."""
    positions = positions_of(tiny.config.to_dict())
    if not positions:
        return 0
    model: Any = auto_class(question.task).from_pretrained(tiny.folder).eval()
    model.config.use_cache = False  # as in training; what a cache cannot do is of no matter there
    for reserved in range(min(MOST_RESERVED, positions)):
        ids = torch.tensor([[tiny.ordinary[at % len(tiny.ordinary)] for at in range(positions - reserved)]])
        if spec_of(question.task).labelled:
            ids[:, -1] = tiny.end  # encoder-decoders classify at the end of the text
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if spec_of(question.task).has_target:
            given["decoder_input_ids"] = ids
        try:
            with torch.no_grad():
                model(**given)
        except (IndexError, RuntimeError, ValueError) as error:
            refusal = error
        else:
            return reserved
    raise refusal


def _order(question: ProbeQuestion, tiny: TinyModel, folder: Path, reserved: int) -> WorkerOrder:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return WorkerOrder(
        plan=_plan(question, tiny, reserved),
        generation=1,
        rank=0,
        local_rank=0,
        node_rank=0,
        world_size=1,
        local_world_size=1,
        master_host="127.0.0.1",
        master_port=port,
        threads=1,
        model=str(tiny.folder),
        dataset=str(folder / "data"),
        checkpoints=str(folder / "checkpoints"),
        outputs=str(folder / "outputs"),
    )


def _plan(question: ProbeQuestion, tiny: TinyModel, reserved: int) -> Plan:
    spec = spec_of(question.task)
    train_rows, eval_rows = (
        SplitFacts(rows=rows, tokens=rows, trained_tokens=rows, longest=21) for rows in ROWS.values()
    )
    positions = positions_of(tiny.config.to_dict())
    model = ModelFacts(
        name="tiny", commit="0", prefix="", source="", model_type=str(tiny.config.model_type), parameters=0,
        size_bytes=0, max_positions=positions - reserved if positions else 0,
    )  # fmt: skip
    data = DatasetFacts(
        sha256="0" * 64,
        train=train_rows,
        eval=eval_rows,
        labels=LABELS if spec.named else (),
        problem_type=ProblemType.SINGLE_LABEL if spec.labelled else None,
    )
    flat: dict[str, Any] = {
        **{"nodes": 1, "processes_per_node": 1, "zero_stage": question.zero_stage, "micro_batch": GLOBAL_BATCH},
        **{"gradient_accumulation": 1, "global_batch": GLOBAL_BATCH, "epochs": 1.0, "max_steps": STEPS},
        **{"learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "constant", "seed": 42, "keep_last": 1},
        **{"eval_every_steps": 0, "checkpoint_every_steps": STEPS, "deepspeed": _deepspeed(question.zero_stage)},
        **(ANSWERS if spec.answers else {}),
    }
    with torch.device("meta"):
        shapes = auto_class(question.task).from_config(tiny.config)
    modules, parameters = shapes.named_modules(), shapes.named_parameters()
    lora = tiny_adapter(question.lora, [name for name, _ in modules], [name for name, _ in parameters])
    # 4-bit weights need a GPU; the adapter on them is LoRA's
    method = MethodType.LORA if question.lora else MethodType.FULL
    return Plan(task=question.task, method=method, model=model, dataset=data, max_length=32, lora=lora, **flat)


def _deepspeed(stage: int) -> dict[str, Any]:
    gathers = {"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {}
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
    adam = {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"), "torch_adam": True}
    return {
        "zero_optimization": {"stage": stage, **gathers},
        **dict.fromkeys(sizes, "auto"),
        "optimizer": {"type": "AdamW", "params": adam},
    }


def _unreached(order: WorkerOrder) -> tuple[str, ...]:
    """Run one batch forward and backward; return the outermost modules of which nothing that is trained got a
    gradient."""
    task = task_of(order.plan)
    model, tokenizer = load_parts(order, task, torch.float32)
    model.train()
    batching = task.batching(model, int(tokenizer.pad_token_id))
    rows = task.viewed(load_split(order, "train"), EVALUATED)
    summed = task.loss(model)(model, batching.collate([rows[at] for at in range(GLOBAL_BATCH)]))
    if not bool(torch.isfinite(summed.total)):
        raise ArithmeticError(f"the loss of random weights is {float(summed.total)}")
    summed.total.backward()  # type: ignore[no-untyped-call]
    trained = {name: one.grad is not None for name, one in model.named_parameters() if one.requires_grad}
    if not any(trained.values()):
        raise ArithmeticError("no parameter that the method trains gets a gradient")
    if order.plan.lora:
        adapted = {name.partition(".lora_")[0]: reached for name, reached in trained.items() if ".lora_" in name}
        holders = {name.removeprefix("base_model.model."): reached for name, reached in adapted.items()}
    else:
        holders = {}
        for name, reached in trained.items():
            holder = name.rpartition(".")[0]
            holders[holder] = holders.get(holder, False) or reached
    found = outermost(holders)
    # a numbered module is one of several layers or experts, which another batch may reach
    return tuple(name for name in found if not any(part.isdigit() for part in name.split(".")))


def outermost(reached: dict[str, bool]) -> tuple[str, ...]:
    """Return the fewest modules that hold all unreached ones and no reached one."""
    found: set[str] = set()
    for name in (name for name, there in reached.items() if not there):
        parts = name.split(".")
        prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
        inside = (one for one in prefixes if not any(_within(other, one) for other, there in reached.items() if there))
        found.add(next(inside))
    return tuple(sorted(found))


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _trained_loss(order: WorkerOrder, events: Path) -> float:
    """Train, evaluate and save under DeepSpeed; return the loss of the evaluation."""
    with events.open("wb") as file:
        code = train(order, Reporter(file.fileno(), order.generation, order.rank))
    if code is not ExitCode.OK:
        raise RuntimeError(f"the worker ended with exit code {int(code)}")
    seen = [WorkerEvent.model_validate_json(line) for line in events.read_bytes().splitlines()]
    return float([event.values["eval_loss"] for event in seen if event.event == "eval"][-1])


def answer(question: ProbeQuestion, enter: Callable[[ProbeStage], None]) -> ProbeAnswer:
    """Return the answer to a question, whatever the libraries raise."""
    at = ProbeStage.SHRINK

    def entered(stage: ProbeStage) -> None:
        nonlocal at
        at = stage
        enter(stage)

    with tempfile.TemporaryDirectory(prefix="finetune-probe-") as folder:
        try:
            return try_every_stage(question, Path(folder), entered)
        except Exception as error:
            return ProbeAnswer(failed=at, reason=last_line(error), fault=fault_of(error))


def last_line(error: BaseException) -> str:
    """Return the error in one line, as people quote it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
