"""Two texts of one row as token ids: joined by the tokenizer's own template, or by a line break where it has none.

Rows that are too long are cut as transformers does by default (`longest_first`): tokens go from the end of the longer
text, until both are of one length.
"""

from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.tokens.backend import Backend, Ids

LINE_BREAK = "\n"  # text, no token: any program that reads plain text can write the same row


def separator_of(backend: Backend) -> str:
    """Return the text to put between two texts: none if the tokenizer's template puts a token there."""
    (probe,) = backend.encodings([("a", "a")])
    return "" if None in probe.sequence_ids[probe.sequence_ids.index(0) : probe.sequence_ids.index(1)] else LINE_BREAK


def encoded_pairs(backend: Backend, batch: Sequence[Example], limit: int, separator: str, typed: bool) -> list[Encoded]:
    """Return the rows of two texts.

    Args:
        limit: tokens of a row at most, special tokens included.
        separator: as of `separator_of`.
        typed: whether the model tells the two texts apart by token types.
    """
    if separator:
        return [_joined(backend, example, separator, limit) for example in batch]
    texts = [(example.text, example.text_pair) for example in batch]
    whole = backend.encodings(texts)
    long = [index for index, one in enumerate(whole) if len(one) > limit]
    rows = dict(zip(long, backend.encodings([texts[index] for index in long], limit), strict=True)) if long else {}
    return [_row(rows.get(index, one), len(one), typed) for index, one in enumerate(whole)]


def _row(one: Encoding, full_length: int, typed: bool) -> Encoded:
    types = np.array(one.type_ids, np.int8) if typed else None
    return Encoded(np.array(one.ids, np.int32), full_length=full_length, types=types)


def _joined(backend: Backend, example: Example, separator: str, limit: int) -> Encoded:
    text = f"{example.text}{separator}{example.text_pair}"
    (whole,) = backend.ids([text])
    if len(whole) <= limit:
        return Encoded(whole, full_length=len(whole))
    (one,) = backend.encodings([text], specials=False)
    ids = np.array(one.ids, np.int32)
    starts = np.array([start for start, _ in one.offsets])
    border, second = np.searchsorted(starts, [len(example.text), len(example.text) + len(separator)])
    before, after = backend.around
    room = max(2, limit - len(before) - len(after) - int(second - border))
    first_length, second_length = longest_first(int(border), len(ids) - int(second), room)
    parts: list[Ids] = [before, ids[:first_length], ids[border:second], ids[second : second + second_length], after]
    return Encoded(np.concatenate(parts)[:limit], full_length=len(whole))


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the tokens that stay of two texts: of the longer one as many as there is room for, at least half of it."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)
