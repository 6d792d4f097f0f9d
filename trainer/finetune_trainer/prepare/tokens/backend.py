"""Text to ids with the `tokenizers` library alone, and from characters to tokens."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Span = tuple[int, int]


class Backend:
    """A fast tokenizer that neither cuts nor pads unless told."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def ids(self, texts: Sequence[str], specials: bool = True) -> list[Ids]:
        """The ids of some texts; `specials`: with what the tokenizer adds to each, such as BOS."""
        return [
            _ids(encoded) for encoded in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=specials)
        ]

    def cut(self, texts: Sequence[str], limit: int) -> list[Ids]:
        """The same with specials, cut so that the last special token is kept, such as BERT's [SEP]."""
        self._tokenizer.enable_truncation(limit)
        try:
            return self.ids(texts)
        finally:
            self._tokenizer.no_truncation()

    def marked(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[Ids, Mask]]:
        """The ids of some texts without specials, and which of them touch a span of characters."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(_ids(encoded), _mask(encoded, own)) for encoded, own in zip(encodings, spans, strict=True)]


def _ids(encoded: Encoding) -> Ids:
    return np.array(encoded.ids, np.int32)


def _mask(encoded: Encoding, spans: Sequence[Span]) -> Mask:
    # asked at the borders only: a list of the offsets of all tokens takes longer than the tokens themselves
    mask = np.zeros(len(encoded), np.bool_)
    for start, end in spans:
        first = next((token for at in range(start, end) if (token := encoded.char_to_token(at)) is not None), None)
        if first is None:  # all of it is white space that the tokenizer drops
            continue
        last = next(token for at in range(end - 1, start - 1, -1) if (token := encoded.char_to_token(at)) is not None)
        while last + 1 < len(mask) and _covers(encoded, last + 1, end - 1):  # a character of several tokens
            last += 1
        mask[first : last + 1] = True
    return mask


def _covers(encoded: Encoding, token: int, char: int) -> bool:
    chars = encoded.token_to_chars(token)
    return chars is not None and chars[0] <= char < chars[1]


@lru_cache(maxsize=2)
def backend(definition: Path) -> Backend:
    """The tokenizer of a file, loaded once per process."""
    return Backend(Tokenizer.from_file(str(definition)))
