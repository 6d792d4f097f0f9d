"""The choice among checkpoints: which one becomes the artifact, which stay in storage, which are deleted. Pure."""

from collections.abc import Collection, Iterable, Mapping

from finetune_api.beats import CheckpointFacts, CheckpointId
from finetune_api.plan import Plan
from finetune_trainer.checkpoints.best import best_by_metric
from finetune_trainer.checkpoints.committed import Committed, StoredCheckpoints


def pick(checkpoints: Iterable[Committed], metric: str, greater: bool) -> Committed:
    """Return the best checkpoint by a metric, the later one of equals; the last one if none has the metric.

    Args:
        checkpoints: committed checkpoints in any order, at least one.
        metric: a name in their `metrics`, such as `eval_macro_f1`.
        greater: whether a greater value is better.
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.id)
    measured = ((checkpoint, checkpoint.info.metrics) for checkpoint in ordered)
    return best_by_metric(measured, metric, greater=greater) or ordered[-1]


def would_be_best(
    checkpoint: CheckpointId, metrics: Mapping[str, float], committed: Mapping[CheckpointId, Committed], plan: Plan
) -> bool:
    """Return whether a checkpoint with these metrics would be the best of the committed ones."""
    measured = {one: there.info.metrics for one, there in committed.items()} | {checkpoint: metrics}
    return _best(measured, plan) == checkpoint


def checkpoint_facts(committed: Mapping[CheckpointId, Committed], plan: Plan) -> dict[CheckpointId, CheckpointFacts]:
    """Return the figures of the committed checkpoints, for people."""
    best = _best({one: there.info.metrics for one, there in committed.items()}, plan)
    return {
        one: CheckpointFacts(
            step=one.step,
            generation=one.generation if there.prefix.endswith(f"-g{one.generation}/") else None,
            saved=there.manifest.created,
            size_bytes=sum(entry.size for entry in there.manifest.files),
            metrics=there.info.metrics,
            best=one == best,
        )
        for one, there in committed.items()
    }


def superseded(facts: Mapping[CheckpointId, CheckpointFacts], plan: Plan) -> set[CheckpointId]:
    """Return the checkpoints to delete: all but the newest `keep_last` and the best by the plan's metric."""
    keep = {*sorted(facts)[-plan.schedule.keep_last :], *(one for one in facts if facts[one].best)}
    return set(facts) - keep


def abandoned(stored: StoredCheckpoints, awaited: Collection[CheckpointId] = ()) -> dict[CheckpointId, str]:
    """Return the key prefixes of unfinished uploads that will never be committed: a newer checkpoint is committed.

    Args:
        awaited: checkpoints of which a node may still upload its part; they are left out.
    """
    newest = max(stored.committed, default=None)
    if newest is None:
        return {}
    return {one: there.prefix for one, there in stored.unfinished.items() if one < newest and one not in awaited}


def _best(measured: Mapping[CheckpointId, Mapping[str, float]], plan: Plan) -> CheckpointId | None:
    items = ((one, measured[one]) for one in sorted(measured))
    return best_by_metric(items, plan.evaluation.best_metric, greater=plan.evaluation.greater_is_better)
