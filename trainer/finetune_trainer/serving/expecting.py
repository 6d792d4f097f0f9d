"""The answers that a server must give: those of plain transformers and peft to the same prompts, on a CPU."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_api.plan import Plan
from finetune_trainer.judge.answering import Answering
from finetune_trainer.judge.candidates import tokenizer_of, tuned_model
from finetune_trainer.judge.judge_question import JudgeQuestion, JudgeSettings
from finetune_trainer.serving.serve_records import ExpectedAnswers, GreedyAnswer, ServeQuestion
from finetune_trainer.serving.server_client import TURN
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.evaluation.questions import Question, first_questions, last_turn

FEWEST = 2  # tokens of a prompt


def expected_answers(asked: ServeQuestion, report: Callable[[str], None]) -> ExpectedAnswers:
    """Return the answers of transformers.

    Raises:
        ValueError: there is no prompt.
    """
    question = JudgeQuestion(
        plan=asked.plan,
        settings=JudgeSettings(),
        step=0,
        generation=0,
        form="",
        base=asked.base,
        artifact=asked.artifact,
        dataset=asked.dataset,
        chat=asked.chat,
    )
    tokenizer = tokenizer_of(question)
    model = tuned_model(question, tokenizer)
    answering = Answering(asked.plan, model, tokenizer, chat=asked.chat)
    given = answering.prompts(asked.settings.prompts) if asked.settings.prompts else eval_prompts(asked)
    prompts = [one for one in given if _fits(len(one), asked.plan, asked.settings.tokens)]
    if not prompts:
        raise ValueError("no prompt leaves room for an answer")
    report(f"transformers answers {len(prompts)} prompts with at most {asked.settings.tokens} tokens")
    # one at a time: in a batch, padding changes the rounding
    answers = [answering.answers([prompt], asked.settings.tokens)[0] for prompt in prompts]
    return ExpectedAnswers(
        prompts=tuple(tuple(map(int, one)) for one in prompts),
        answers=tuple(GreedyAnswer(tokens=tuple(map(int, one.tokens)), ended=one.ended) for one in answers),
        ends=tuple(answering.stops),
        dtype=str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        turn=tuple(map(int, answering.prompts([TURN])[0])) if asked.chat and tokenizer.chat_template else (),
    )


def eval_prompts(asked: ServeQuestion) -> list[npt.NDArray[np.int64]]:
    """Return prompts of the eval split: what stands before the last answer of a row, or the first half of a text."""
    rows, most = ArrowRows(Path(asked.dataset), "eval"), asked.settings.rows
    questions = first_questions(rows, most, last_turn) or first_questions(rows, most, _half)
    return [one.prompt for one in questions]


def _half(number: int, ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Question | None:
    half = len(ids) // 2
    return Question(number, ids[:half], ids[half:]) if half >= FEWEST else None


def _fits(length: int, plan: Plan, tokens: int) -> bool:
    limit = plan.model.max_positions
    return length >= FEWEST and (not limit or length + tokens <= limit)
