"""The tokens that end an answer of the trained model: those of its base, and those that end the training rows.

The evaluation generates with them, and the artifact's generation_config.json holds them, so the scores are those of a
plain `generate()`. Imports nothing heavy.
"""

from collections.abc import Iterable


def end_tokens(base: int | Iterable[int] | None, taught: Iterable[int], tokenizer: int | None) -> list[int]:
    """Return the ids of the tokens that end an answer, those of the base model first.

    Args:
        base: `eos_token_id` of the base model's generation configuration.
        taught: as of `DatasetFacts.ends`.
        tokenizer: the tokenizer's end-of-text token, used if the other two are empty.
    """
    own = [base] if isinstance(base, int) else list(base or ())
    return list(dict.fromkeys([*own, *taught])) or ([] if tokenizer is None else [tokenizer])
