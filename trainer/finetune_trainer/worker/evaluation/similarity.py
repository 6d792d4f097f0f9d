"""Similarity of generated answers to their references: exact match, chrF, ROUGE, by sacreBLEU and rouge-score."""

import re
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.chrf import CHRF

from finetune_trainer.process.lean_imports import TAKEN_ALONG, imports_without

ROUGE = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
WORD = re.compile(r"[^\W_]+")


class Words:
    """A tokenizer for rouge-score, of letters and digits in any script. Its own takes ASCII only, so that other scripts
    would score 0."""

    def tokenize(self, text: str) -> list[str]:
        """Return lower-case words; for ASCII text the same as rouge-score's."""
        return WORD.findall(text.lower())


def similarity(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return the scores over all pairs; empty without pairs.

    The scores are `exact_match`, the share of answers that equal their reference apart from surrounding white space;
    `chrf`, 0 to 100, of the corpus (Popović 2015, character n-grams up to 6, beta 2); `rouge_1`, `rouge_2` and
    `rouge_l`, mean F1 of the pairs without stemming (Lin 2004).
    """
    if not answers:
        return {}
    with imports_without(*TAKEN_ALONG):  # here: rouge-score imports all of nltk, and most tasks write no answers
        from rouge_score.rouge_scorer import RougeScorer
    pairs = list(zip(answers, references, strict=True))
    equal = sum(answer.strip() == reference.strip() for answer, reference in pairs)
    scorer = RougeScorer(list(ROUGE), use_stemmer=False, tokenizer=Words())
    scored: list[dict[str, Any]] = [scorer.score(reference, answer) for answer, reference in pairs]
    means: dict[str, Any] = {
        name: sum(score[kind].fmeasure for score in scored) / len(scored) for kind, name in ROUGE.items()
    }
    return {
        "exact_match": equal / len(pairs),
        "chrf": float(CHRF().corpus_score(list(answers), [list(references)]).score),
        **{name: float(value) for name, value in means.items()},
    }
