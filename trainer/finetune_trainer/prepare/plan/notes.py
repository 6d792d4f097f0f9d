"""What a plan reports of its layout and of its checkpoints: values with their reasons, into the log. Pure."""

from finetune_trainer.prepare.plan.checkpoint_cost import LOCAL_CHECKPOINTS, grace_seconds, scratch_bytes, stop_uploads
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.gpus import GIB
from finetune_trainer.prepare.plan.rank_layout import RankLayout, Request
from finetune_trainer.prepare.plan.rank_load import Load


def note_layout(log: ChoiceLog, request: Request, layout: RankLayout) -> None:
    """Note how the job is spread over its ranks."""
    load, machine, memory = layout.load, request.machine, layout.memory
    log.note(
        "spec.deepspeed.stage",
        load.zero_stage,
        "given" if request.stage is not None else _why_stage(load, machine.world_size),
        request.stage is not None,
    )
    kept = f"{memory.bytes / GIB:.3g} of {machine.memory_bytes / GIB:.4g} GiB a {machine.unit} ({machine.source})"
    log.take(
        "per_device_train_batch_size",
        load.micro,
        f"the least memory of the layouts about as fast as the fastest that fits: rows of {load.tokens} tokens, {kept}",
    )
    log.take("gradient_accumulation_steps", load.accumulation, "fills the global batch")
    log.note(
        "spec.training.activation_checkpointing",
        load.recomputed,
        "given"
        if request.recomputed is not None
        else ("no much faster layout fits" if load.recomputed else "not needed; it costs a third more arithmetic"),
        request.recomputed is not None,
    )
    if load.architecture.predicts_tokens:
        size = f"logits of a micro-batch take {load.logits_bytes / GIB:.3g} GiB in float32 at most"
        why = (
            "a chunk at a time: less memory, and about as fast"
            if load.chunked
            else "of the trained tokens, all at once"
        )
        log.note("lossHead", "chunked" if load.chunked else "labelled", f"{size}: {why}", False)
    for name, chosen, stated in (
        ("optimizer", load.offload_optimizer, request.offload_optimizer),
        ("parameters", load.offload_parameters, request.offload_parameters),
    ):
        if chosen or stated is not None:
            reason = "given" if stated is not None else "no faster layout fits without the node's memory"
            log.note(f"spec.deepspeed.offload.{name}", "cpu" if chosen else "none", reason, stated is not None)


def _why_stage(load: Load, world: int) -> str:
    stage = load.zero_stage
    if stage == 0:
        return f"nothing is sharded: {load.optimizer.name} needs whole tensors"
    if stage == 3:
        return f"shards weights, gradients and optimizer states over {world} ranks: no much faster layout fits"
    if stage == 1:
        return "shards optimizer states; gradients are reduced once a step, not after every micro-batch"
    return "shards gradients and optimizer states"


def note_noise(log: ChoiceLog) -> None:
    """Note the noise on embeddings, if there is any."""
    if (alpha := log.given.get("neftune_noise_alpha")) is not None:
        reason = "given; uniform noise up to alpha / sqrt(tokens x width) of a document, in training only (NEFTune)"
        log.note("spec.training.neftune_noise_alpha", alpha, reason, True)


def note_saving(draft: Draft, log: ChoiceLog) -> None:
    """Note the grace period and the scratch space that the pods get for checkpoints."""
    checkpoint, model, dataset = draft.checkpoint_bytes, draft.workload.model, draft.workload.dataset
    uploads = stop_uploads(dataset)
    what = f"{checkpoint / GIB:.3g} GiB per node{', the newest and the best checkpoint,' if uploads > 1 else ''}"
    reason = f"time to save and upload {what} at 50 MB/s"
    log.note("gracePeriodSeconds", grace_seconds(checkpoint, uploads), reason, False)
    given = draft.spec.scratch.size if draft.spec.scratch else None
    space = f"{-(-scratch_bytes(model, dataset, checkpoint) // GIB)}Gi"
    reason = "given" if given else f"model, data, and {LOCAL_CHECKPOINTS} checkpoints per node"
    log.note("spec.scratch.size", given or space, reason, given is not None)
