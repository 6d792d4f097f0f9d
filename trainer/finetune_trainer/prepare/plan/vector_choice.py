"""How texts become vectors: as the job says, as the base model was made, or by the architecture. Pure."""

from finetune_api.errors import SpecError
from finetune_api.messages import Task
from finetune_api.plan import PlannedEmbedding
from finetune_api.tasks import spec_of
from finetune_api.v1alpha1 import FineTuneJob
from finetune_trainer.model.families import family_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.sentence_model import SentenceModel

SCALE = 20.0
BASE = "of the base model (sentence-transformers)"
FIELD = "spec.embedding"


def embedding_of(
    job: FineTuneJob, task: Task, log: ChoiceLog, base: SentenceModel, model_type: str, limit: int
) -> PlannedEmbedding | None:
    """Choose how vectors are made; None for a task without them.

    Args:
        base: what sentence-transformers' files say of the base model.
        limit: tokens at which texts are cut.

    Raises:
        SpecError: the base model makes its vectors in a way that is not trained here, and the job names no other.
    """
    if not spec_of(task).compares:
        return None
    given = job.spec.embedding
    stated = given.pooling if given else None
    if base.strange and stated is None:
        message = f"is omitted, and the base model makes its vectors with {base.strange}, which is not trained here"
        cure = "set it to mean, cls or last: the vectors are then made in this way alone; or use another base model"
        raise SpecError(problem("PoolingNotSupported", f"{FIELD}.pooling", message, cure))
    both_ways = family_of(model_type).reads_both_ways
    rule = base.pooling or ("mean" if both_ways else "last")
    usual = "every token sees the whole text" if both_ways else "only the last token has seen the whole text"
    pooling = log.settle(f"{FIELD}.pooling", rule, BASE if base.pooling else usual, stated)
    reason = "temperature 0.05, the default of sentence-transformers' MultipleNegativesRankingLoss"
    scale = log.settle(f"{FIELD}.scale", SCALE, reason, given.scale if given else None)
    dims = tuple(given.matryoshka_dims) if given else ()
    query = _prompt(log, "queryPrompt", base.query_prompt, given.query_prompt if given else None)
    document = _prompt(log, "documentPrompt", base.document_prompt, given.document_prompt if given else None)
    return PlannedEmbedding(
        pooling=pooling,
        scale=scale,
        dims=dims,
        query_prompt=query,
        document_prompt=document,
        max_seq_length=limit,
    )


def _prompt(log: ChoiceLog, name: str, rule: str, given: str | None) -> str:
    if not rule and given is None:
        return ""
    return str(log.settle(f"{FIELD}.{name}", rule, BASE, given))
