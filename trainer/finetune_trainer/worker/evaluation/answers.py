"""Greedy generation of answers with the model in training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.model.ends import end_tokens
from finetune_trainer.worker.evaluation.questions import Question
from finetune_trainer.worker.evaluation.shares import share_of

BATCH_TOKENS = (2048, 8192)  # bounds of a batch's tokens, prompts and answers; between them, as a training micro-batch
BATCH_ROWS = 32


class Generator:
    """A generator of answers for one plan.

    Args:
        plan: limits the length of an answer; no answer gets longer than the longest reference.
    """

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerBase) -> None:
        # an answer continues its prompt, or a decoder begins it with its start token
        self._continues = spec_of(plan.task).continues
        self._tokenizer = tokenizer
        self._taught = plan.dataset.ends
        self._most = plan.evaluation.answers.max_new_tokens
        self._positions = plan.model.max_positions
        least, most = BATCH_TOKENS
        self._tokens = min(most, max(least, plan.layout.micro_batch * plan.max_length))

    def __call__(
        self,
        model: torch.nn.Module,
        questions: Sequence[Question],
        rank: int,
        world_size: int,
        device: torch.device,
        check_stop: Callable[[], None] = lambda: None,
    ) -> dict[int, list[int]]:
        """Return the answers of one rank's share: place in `questions` -> token ids without the end of the answer.

        Args:
            model: as loaded, with its adapter; DeepSpeed's hooks are in its modules.
            check_stop: called before each batch; raises to abandon the remaining batches.
        """
        longest = max(len(question.reference) for question in questions)
        most = min(self._most, longest)
        lengths = [len(question.prompt) for question in questions]
        fitting = max(1, self._tokens // (max(lengths) + most))
        spread = -(-len(questions) // world_size)
        rows = min(fitting, BATCH_ROWS, spread)
        share = share_of(lengths, rows, rank, world_size)
        longest_first = sorted(lengths, reverse=True)
        stops = self._stops(model)
        answers: dict[int, list[int]] = {}
        with torch.no_grad():
            for number, batch in enumerate(share.batches):
                check_stop()
                # Longest prompt of all ranks' current batches: under ZeRO-3 all ranks generate until the last is done.
                longest = longest_first[number * world_size * rows]
                own = [questions[place] for place in batch]
                generated = self._generate(model, own, self._config(longest, most, stops), device)
                if number < share.counted:
                    for place, ids in zip(batch, generated, strict=True):
                        answers[place] = _until(ids, set(stops))
        return answers

    def _generate(
        self, model: torch.nn.Module, questions: Sequence[Question], config: GenerationConfig, device: torch.device
    ) -> list[list[int]]:
        width = max(len(question.prompt) for question in questions)
        ids = torch.full((len(questions), width), int(self._tokenizer.pad_token_id or 0), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for line, question in enumerate(questions):
            # A causal model continues from the last token of its prompt, so the padding comes before the prompt.
            where = slice(width - len(question.prompt), width) if self._continues else slice(len(question.prompt))
            ids[line, where] = torch.from_numpy(question.prompt)
            mask[line, where] = 1
        output: torch.Tensor = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config
        )
        start = width if self._continues else 1  # a decoder's output begins with its start token
        return [[int(token) for token in line] for line in output[:, start:].tolist()]

    def _config(self, longest: int, most: int, stops: list[int]) -> GenerationConfig:
        """Return a greedy configuration, without the model's sampling and beams; `longest`: tokens of the prompt."""
        if self._positions:  # models with learned positions fail beyond them
            before = longest if self._continues else 1
            most = max(1, min(most, self._positions - before))
        return GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            use_cache=True,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=stops,
        )

    def _stops(self, model: torch.nn.Module) -> list[int]:
        """Return the ids of the tokens that end an answer of the artifact."""
        own: Any = getattr(model, "generation_config", None)
        return end_tokens(getattr(own, "eos_token_id", None), self._taught, self._tokenizer.eos_token_id)


def _until(ids: Sequence[int], stops: set[int]) -> list[int]:
    """Return the answer up to its first stop token."""
    kept: list[int] = []
    for token in ids:
        if token in stops:
            break
        kept.append(token)
    return kept
