"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness), called as a library.

The model is loaded as a user loads it: plain transformers and peft, the files of the artifact, on a CPU.
"""

from pathlib import Path
from typing import Any

import lm_eval
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import PeftModel
from transformers import AutoTokenizer

from finetune_api.tasks import spec_of
from finetune_trainer.suites.harness_values import rows_by_task, values_of
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteQuestion
from finetune_trainer.worker.models.new_token_rows import add_rows, new_ids


def run_suite(question: SuiteQuestion) -> SuiteAnswer:
    """Return the values of every task of a suite."""
    settings = question.settings
    found = lm_eval.simple_evaluate(
        model=_model(question),
        tasks=list(settings.tasks),
        num_fewshot=settings.few_shot,
        limit=settings.limit,
        task_manager=task_manager(question.definitions, settings.tasks),
        apply_chat_template=settings.chat_template,
        log_samples=False,
        bootstrap_iters=1000,
    )
    if found is None:
        raise RuntimeError("lm-evaluation-harness returned nothing")
    rows = rows_by_task(found.get("n-samples") or {})
    return SuiteAnswer(values=tuple(values_of(found["results"], rows)), harness=str(found.get("lm_eval_version") or ""))


def task_manager(definitions: str, tasks: tuple[str, ...]) -> Any:
    """Return the tasks that can be named: the user's own, and those of the harness unless all are the user's own. To
    read the thousands of definitions of the harness takes 10 seconds."""
    if definitions:
        own = TaskManager(include_path=definitions, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=definitions or None)


def _model(question: SuiteQuestion) -> Any:
    """Return the harness's model around the artifact."""
    plan, artifact = question.plan, Path(question.artifact)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    auto = getattr(transformers, spec_of(plan.task).auto_class)
    model: Any
    if question.base:
        model = auto.from_pretrained(question.base)
        if plan.new_tokens:
            add_rows(model, new_ids(plan, tokenizer))  # as training began
        model = PeftModel.from_pretrained(model, str(artifact))
    else:
        model = auto.from_pretrained(artifact)
    return HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=1, device="cpu")
