"""Text to ids with the `tokenizers` library alone, and from characters to tokens."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from finetune_trainer.prepare.tokens.words import WordSplitter

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Span = tuple[int, int]


class Backend:
    """A fast tokenizer that cuts or pads only on request.

    Args:
        words: puts ids together from remembered words, where a text lets it; None where the tokenizer does not.
    """

    def __init__(self, tokenizer: Tokenizer, words: WordSplitter | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._words = words
        self._around = _around(tokenizer)

    def ids(self, texts: Sequence[str], specials: bool = True) -> list[Ids]:
        """Return the ids of some texts; `specials`: with what the tokenizer adds to each, such as BOS.

        A text that begins with BOS itself gets no second one, and one that ends with the added end no second end.
        """
        words = self._words
        known = [words is not None and self._around is not None and words.fits(text) for text in texts]
        others = iter(self._encoded([text for text, own in zip(texts, known, strict=True) if not own], specials))
        before, after = self._around if self._around and specials else (b"", b"")
        rows = [
            np.frombuffer(before + words.ids_of(text) + after, np.int32) if words and own else _ids(next(others))
            for text, own in zip(texts, known, strict=True)
        ]
        return [self._once(ids) for ids in rows] if specials else rows

    def text(self, ids: Ids) -> str:
        """Return the text of some ids, special tokens with it."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    @property
    def around(self) -> tuple[Ids, Ids]:
        """What the tokenizer adds before and after a text; empty if that is not the same for all texts."""
        before, after = self._around or (b"", b"")
        return np.frombuffer(before, np.int32), np.frombuffer(after, np.int32)

    def encodings(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], limit: int | None = None, *, specials: bool = True
    ) -> list[Encoding]:
        """Return the tokens of texts, or of pairs of texts, with their places in the text.

        Args:
            limit: tokens at which a text is cut, the longer one of a pair first; the special tokens stay.
        """
        if limit is None:
            return list(self._tokenizer.encode_batch(list(texts), add_special_tokens=specials))
        self._tokenizer.enable_truncation(limit, strategy="longest_first")
        try:
            return list(self._tokenizer.encode_batch(list(texts), add_special_tokens=specials))
        finally:
            self._tokenizer.no_truncation()

    def cut(self, texts: Sequence[str], limit: int) -> list[Ids]:
        """Return the same with specials, cut so that the last special token is kept, such as BERT's [SEP]."""
        self._tokenizer.enable_truncation(limit)
        try:
            return [self._once(_ids(encoded)) for encoded in self._encoded(texts, specials=True)]
        finally:
            self._tokenizer.no_truncation()

    def marked(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[Ids, Mask]]:
        """Return the ids of some texts without specials, and which of them touch a span (ascending, apart)."""
        words = self._words
        known = [words is not None and words.fits(text) for text in texts]
        unknown = [text for text, own in zip(texts, known, strict=True) if not own]
        others = iter(self._tokenizer.encode_batch(unknown, add_special_tokens=False))
        rows: list[tuple[Ids, Mask]] = []
        for text, own, ranges in zip(texts, known, spans, strict=True):
            if words is not None and own:
                packed, touched = words.marked(text, ranges)
                ids = np.frombuffer(packed, np.int32)
                mask = np.zeros(len(ids), np.bool_)
                for first, last in touched:
                    mask[first:last] = True
                rows.append((ids, mask))
            else:
                encoded = next(others)
                rows.append((_ids(encoded), _mask(encoded, ranges)))
        return rows

    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text; None if there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def _once(self, ids: Ids) -> Ids:
        """Leave out what the tokenizer adds to a text that begins or ends with it already."""
        before, after = self.around
        while len(before) and len(ids) >= 2 * len(before) and (ids[len(before) : 2 * len(before)] == before).all():
            ids = ids[len(before) :]
        while len(after) and len(ids) >= 2 * len(after) and (ids[-2 * len(after) : -len(after)] == after).all():
            ids = ids[: -len(after)]
        return ids

    def _encoded(self, texts: Sequence[str], specials: bool) -> list[Encoding]:
        return list(self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=specials))


def _ids(encoded: Encoding) -> Ids:
    return np.array(encoded.ids, np.int32)


def _around(tokenizer: Tokenizer) -> tuple[bytes, bytes] | None:
    """Return what the tokenizer adds before and after a text; None if that is not the same for all texts."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for at in range(len(full) - len(bare) + 1):
        if bare and full[at : at + len(bare)] == bare:
            before, after = full[:at], full[at + len(bare) :]
            return np.array(before, np.int32).tobytes(), np.array(after, np.int32).tobytes()
    return None


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
    """Return the tokenizer of a file, loaded once per process."""
    text = definition.read_text("utf-8")
    return Backend(Tokenizer.from_str(text), WordSplitter.of(text))
