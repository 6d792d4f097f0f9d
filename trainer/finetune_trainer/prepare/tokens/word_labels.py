"""Texts with a tag for each word as token ids: a word is labelled at its first token. Long rows become several.

The tokens are those of the whole text, as the trained model will see it, and not of each word alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from finetune_trainer.dataset.tagging import TagScheme
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.observed.encoded import Encoded, Remark, RemarkCode
from finetune_trainer.prepare.tokens.backend import Backend

NO_WORD = -1  # a token at which no word begins


@dataclass(frozen=True)
class Window:
    """Tokens `start` to before `stop` of a text, and the words that begin in them."""

    start: int
    stop: int


def encoded_words(backend: Backend, batch: Sequence[Example], limit: int) -> list[Encoded | Fault]:
    """Return the rows; `limit`: tokens of a row at most, special tokens included."""
    whole = backend.encodings([example.text for example in batch], specials=False)
    return [_row(backend, example, one, limit) for example, one in zip(batch, whole, strict=True)]


def _row(backend: Backend, example: Example, whole: Encoding, limit: int) -> Encoded | Fault:
    words = first_tokens(whole, example.words)
    if not (words > NO_WORD).any():
        return Fault(example.line, Code.NOTHING_TO_LEARN, "the tokenizer gives no token for any word of the row")
    before, after = backend.around
    room = max(1, limit - len(before) - len(after))
    ids = np.array(whole.ids, np.int32)
    parts = windows(words, _inner(example), room)
    rows = [np.concatenate([before, ids[one.start : one.stop], after]) for one in parts]
    padded = [np.pad(words[one.start : one.stop], (len(before), len(after)), constant_values=NO_WORD) for one in parts]
    scheme = TagScheme.of(set(example.tags))
    misplaced = scheme.misplaced(example.tags)
    joined = np.concatenate(rows)
    return Encoded(
        joined,
        full_length=len(joined),
        parts=np.array([len(row) for row in rows], np.int32),
        words=np.concatenate(padded),
        remarks=(Remark(RemarkCode.INCONSISTENT_TAGS, misplaced),) if misplaced else (),
    )


def first_tokens(whole: Encoding, words: Sequence[tuple[int, int]]) -> npt.NDArray[np.int32]:
    """Return the index of the word that begins at each token, else -1; int32 [tokens].

    A word of characters that the tokenizer drops has no token. Of words that share a token, the first has it.
    """
    found = np.full(len(whole), NO_WORD, np.int32)
    for index, (start, end) in enumerate(words):
        token = next((at for char in range(start, end) if (at := whole.char_to_token(char)) is not None), None)
        if token is not None and found[token] == NO_WORD:
            found[token] = index
    return found


def windows(words: npt.NDArray[np.int32], inner: frozenset[int], room: int) -> list[Window]:
    """Return parts of at most `room` tokens. They begin with a word, and with no inner word of an entity if possible.

    Args:
        words: as of `first_tokens`.
        inner: words that continue an entity.
    """
    parts: list[Window] = []
    start = 0
    while len(words) - start > room:
        begins = [at for at in range(start + 1, start + room + 1) if words[at] != NO_WORD]
        outer = [at for at in begins if int(words[at]) not in inner]
        stop = (outer or begins or [start + room])[-1]  # a word that is longer than a window is cut
        parts.append(Window(start, stop))
        start = stop
    return [*parts, Window(start, len(words))]


def _inner(example: Example) -> frozenset[int]:
    entities = TagScheme.of(set(example.tags)).entities(example.tags)
    return frozenset(word for entity in entities for word in range(entity.start + 1, entity.stop))
