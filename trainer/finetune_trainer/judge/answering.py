"""One model answers: losses of rows and texts, greedy answers, continuations. Plain transformers on a CPU.

Batches are small enough that logits take at most 256 MiB, whatever the vocabulary; of one long row at most 1 GiB. A
causal model that cannot leave logits out makes those of a whole row.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune_api.messages import ProblemType
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.judge.general_texts import GENERAL_TEXTS
from finetune_trainer.judge.memorised import Ids, Prefix, is_verbatim
from finetune_trainer.judge.resampling import Reals
from finetune_trainer.judge.sides import JudgedAnswer
from finetune_trainer.model.ends import end_tokens
from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.evaluation.questions import Question

LOGITS = 64_000_000  # numbers in one batch, 256 MiB in float32
FORWARDS = 4  # times as many logits of a long row from one pass of the model
BATCH_TOKENS, BATCH_ROWS = 4096, 16


@dataclass(frozen=True, eq=False)
class Scored:
    """A sequence whose loss is asked for. `labels`: -100 where no loss is due; as `ids` for a causal model."""

    ids: Ids
    labels: Ids


class Answering:
    """One loaded model, which answers.

    Args:
        chat: whether prompts of a job are users' turns.
    """

    def __init__(self, plan: Plan, model: Any, tokenizer: PreTrainedTokenizerBase, *, chat: bool = False) -> None:
        self._chat = chat
        self._plan = plan
        self._model = model
        self._tokenizer = tokenizer
        self._continues = spec_of(plan.task).continues
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self._keeps = "logits_to_keep" in inspect.signature(self._whole.forward).parameters
        self._pad = int(tokenizer.pad_token_id or 0)
        own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        self._stops = end_tokens(own, plan.dataset.ends, tokenizer.eos_token_id)

    @property
    def stops(self) -> list[int]:
        """Tokens that end an answer."""
        return self._stops

    def losses(self, rows: Sequence[Scored]) -> tuple[Reals, Reals]:
        """Return the summed loss and the number of tokens with a loss of each row."""
        totals, counts = np.zeros(len(rows)), np.zeros(len(rows))
        lengths = [len(row.ids) + (0 if self._continues else len(row.labels)) for row in rows]
        for places in self._batches(lengths, logits=True):
            for place, (total, count) in zip(places, self._batch_losses([rows[one] for one in places]), strict=True):
                totals[place], counts[place] = total, count
        return totals, counts

    def _batch_losses(self, rows: Sequence[Scored]) -> list[tuple[float, int]]:
        ids, mask = self._padded([row.ids for row in rows], before=False)
        labels, _ = self._padded([row.labels for row in rows], before=False, filler=IGNORED)
        if not self._continues:
            totals = self._target_losses(ids, mask, labels)
        else:
            totals = self._continued_losses(ids, mask, labels := labels[:, 1:])
        counts = (labels != IGNORED).sum(1)
        return [(float(total), int(count)) for total, count in zip(totals, counts, strict=True)]

    def _target_losses(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of each target [rows]. A long target is decoded part by part, each with the keys and
        values of those before it, so that the logits of a whole row are never in memory."""
        most = max(1, FORWARDS * LOGITS // (self._vocabulary * len(ids)))
        if labels.shape[1] <= most:
            with torch.no_grad():
                return self._summed(self._model(input_ids=ids, attention_mask=mask, labels=labels).logits, labels)
        total, cache = torch.zeros(len(ids), dtype=torch.float64), None
        with torch.no_grad():
            encoded = self._whole.get_encoder()(input_ids=ids, attention_mask=mask)
            inputs = self._whole.prepare_decoder_input_ids_from_labels(labels=labels)
            for some, right in zip(torch.split(inputs, most, 1), torch.split(labels, most, 1), strict=True):
                out = self._model(
                    encoder_outputs=encoded,
                    attention_mask=mask,
                    decoder_input_ids=some,
                    past_key_values=cache,
                    use_cache=True,
                )
                total, cache = total + self._summed(out.logits, right), out.past_key_values
        return total

    def _continued_losses(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of each row [rows]. Logits are made only of positions with a loss, if the model can:
        those of one long row may be larger than the model."""
        places = (labels != IGNORED).any(0).nonzero().squeeze(1)
        total = torch.zeros(len(ids), dtype=torch.float64)
        most = max(1, FORWARDS * LOGITS // (self._vocabulary * len(ids)))
        for some in torch.split(places, most if self._keeps else max(1, len(places))):
            with torch.no_grad():
                if self._keeps:
                    logits = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=some).logits
                else:
                    logits = self._model(input_ids=ids, attention_mask=mask).logits[:, some]
            total += self._summed(logits, labels[:, some])
        return total

    def _summed(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of each row [rows], of a slice of positions at a time."""
        width = max(1, LOGITS // (logits.shape[-1] * len(logits)))
        total = torch.zeros(len(logits), dtype=torch.float64)
        for some, right in zip(torch.split(logits, width, 1), torch.split(labels, width, 1), strict=True):
            each = torch.nn.functional.cross_entropy(
                some.float().transpose(1, 2), right, reduction="none", ignore_index=IGNORED
            )
            total += each.double().sum(1)
        return total

    def references(self, questions: Sequence[Question], prompts: Sequence[Ids]) -> Reals:
        """Return the summed loss of each reference after a prompt, which may be that of another question."""
        return self.losses([self._after(one, prompt) for one, prompt in zip(questions, prompts, strict=True)])[0]

    def _after(self, question: Question, prompt: Ids) -> Scored:
        reference = question.reference
        if not self._continues:
            return Scored(prompt, reference)
        most = self._plan.model.max_positions or self._plan.max_length
        kept = prompt[-max(1, most - len(reference)) :]
        return Scored(np.concatenate([kept, reference]), np.concatenate([np.full(len(kept), IGNORED), reference]))

    def labels(self, batches: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Return the logits of a classification for collated batches, [rows, labels]."""
        found = []
        with torch.no_grad():
            for batch in batches:
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                found.append(self._model(**inputs).logits.float())
        return torch.cat(found)

    def answers(self, prompts: Sequence[Ids], limit: int) -> list[JudgedAnswer]:
        """Return greedy answers of at most `limit` tokens, which end where the artifact's answers end."""
        found: dict[int, JudgedAnswer] = {}
        for places in self._batches([len(prompt) + limit for prompt in prompts]):
            generated = self._generated([prompts[one] for one in places], limit, self._stops)
            for place, tokens in zip(places, generated, strict=True):
                end = next((at for at, token in enumerate(tokens) if token in self._stops), None)
                kept = tokens[:end]
                text = str(self._tokenizer.decode(kept, skip_special_tokens=True)).strip()
                found[place] = JudgedAnswer(text, tuple(kept), end is not None)
        return [found[place] for place in range(len(prompts))]

    def continued(self, prefixes: Sequence[Prefix]) -> list[bool]:
        """Return whether each beginning of a row is continued verbatim."""
        found = [False] * len(prefixes)
        most = max((len(one.continuation) for one in prefixes), default=0)
        for places in self._batches([len(one.prompt) + most for one in prefixes]):
            generated = self._generated([prefixes[one].prompt for one in places], most, [])
            for place, tokens in zip(places, generated, strict=True):
                found[place] = is_verbatim(tokens, prefixes[place].continuation)
        return found

    def general(self, texts: Sequence[str]) -> Reals:
        """Return the summed loss of each text: all of it, or for an encoder-decoder its second half."""
        return self.losses([self._general(text) for text in texts])[0]

    def _general(self, text: str) -> Scored:
        if self._continues:
            ids = self._ids(text)
            return Scored(ids, ids)
        half = len(text) // 2
        return Scored(self._ids(text[:half]), self._ids(text[half:]))

    def texts(self, texts: Sequence[str]) -> Reals:
        """Return the summed loss of each text, for a causal model."""
        return self.losses([Scored(ids, ids) for ids in map(self._ids, texts)])[0]

    def prompts(self, texts: Sequence[str]) -> list[Ids]:
        """Return the prompts of a job as the model reads them: as a user's turn where training used a chat template."""
        if not self._chat or not self._continues or not self._tokenizer.chat_template:
            return [self._ids(text) for text in texts]
        turns = [[{"role": "user", "content": text}] for text in texts]
        rendered = [
            self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns
        ]
        return [np.array(self._tokenizer(text, add_special_tokens=False)["input_ids"], np.int64) for text in rendered]

    def _ids(self, text: str) -> Ids:
        ids = self._tokenizer(text)["input_ids"]
        if self._continues and ids and ids[-1] == self._tokenizer.eos_token_id:
            ids = ids[:-1]
        return np.array(ids[: self._plan.max_length], np.int64)

    def _generated(self, prompts: Sequence[Ids], limit: int, stops: list[int]) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        ids, mask = self._padded(prompts, before=self._continues)
        most = limit
        if self._plan.model.max_positions:  # models with learned positions fail beyond them
            most = max(1, min(limit, self._plan.model.max_positions - (width if self._continues else 1)))
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            temperature=1.0,  # what is not given would be that of the base model
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            use_cache=True,
            pad_token_id=self._pad,
            eos_token_id=stops or [self._vocabulary],  # a token that does not exist
        )
        start = getattr(self._model.config, "decoder_start_token_id", None)
        if not self._continues and start is not None:
            config.decoder_start_token_id = start
        with torch.no_grad():
            output = self._model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        begin = width if self._continues else 1
        return [[int(token) for token in line] for line in output[:, begin:].tolist()]

    def _padded(
        self, rows: Sequence[Ids], *, before: bool, filler: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self._pad if filler is None else filler, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.int64)
        for line, row in enumerate(rows):
            where = slice(width - len(row), width) if before else slice(len(row))
            ids[line, where] = torch.from_numpy(np.asarray(row, np.int64))
            mask[line, where] = 1
        return ids, mask

    def _batches(self, lengths: Sequence[int], *, logits: bool = False) -> Iterator[list[int]]:
        """Yield the places of each batch, rows of like length together."""
        most = min(BATCH_TOKENS, LOGITS // self._vocabulary) if logits else BATCH_TOKENS
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lambda one: lengths[one]):
            if batch and (len(batch) == BATCH_ROWS or (len(batch) + 1) * lengths[place] > most):
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch


def predictions(problem: ProblemType, logits: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return label ids [rows], bools [rows, labels], or numbers [rows], as the evaluation of a run does."""
    match problem:
        case ProblemType.MULTI_LABEL:
            return (logits.sigmoid() > 0.5).numpy()
        case ProblemType.REGRESSION:
            return logits.squeeze(-1).double().numpy()
        case _:
            return logits.argmax(-1).numpy()


def label_losses(problem: ProblemType, logits: torch.Tensor, truth: torch.Tensor) -> Reals:
    """Return the loss of each row, as transformers computes it for the kind of the labels."""
    match problem:
        case ProblemType.MULTI_LABEL:
            each = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none")
            return each.mean(1).double().numpy()
        case ProblemType.REGRESSION:
            return ((logits.squeeze(-1) - truth) ** 2).double().numpy()
        case _:
            return torch.nn.functional.cross_entropy(logits, truth, reduction="none").double().numpy()


def general_texts() -> tuple[list[str], list[str]]:
    """Return every general text, and the language of each."""
    pairs = [(text, language) for language, texts in GENERAL_TEXTS.items() for text in texts]
    return [text for text, _ in pairs], [language for _, language in pairs]
