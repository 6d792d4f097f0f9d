"""The proof that what carries loss is what a row says an answer is: tokens are decoded and compared with the row.

It knows nothing of spans and marks. Both sides go through the tokenizer once, for it may change texts (lower case,
Unicode forms), and white space is left out, for templates trim and tokenizers add blanks.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.prepare.data.conversation import REASONING
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded, Remark, RemarkCode
from finetune_trainer.prepare.tokens.backend import Backend

FIRST_ROWS, EVERY = 50, 200  # rows that are checked: the first of each file, then one in EVERY
SHORTEST = 12  # characters: shorter texts of others, such as "yes", may occur anywhere
MARKS = 80  # the most characters that a template writes before a message's text
SHOWN = 300  # characters of a text in a remark
BROKEN = "\ufffd"  # half of a character, where a row is cut


def is_sampled(line: int) -> bool:
    """Return whether the row of a line is checked."""
    return line <= FIRST_ROWS or line % EVERY == 0


@dataclass(frozen=True)
class Proof:
    """A comparison of rows with their tokens.

    Attributes:
        unk_id: rows with this token are skipped: the text that it replaces is lost.
        everything: what others say carries loss, too.
    """

    backend: Backend
    unk_id: int | None = None
    everything: bool = False

    def of_chat(self, example: Example, row: Encoded) -> Remark | None:
        """Return the difference between a conversation and what carries loss, or None."""
        if row.trained is None or self._is_unknown(row):
            return None
        segments = self._learnt(row)
        loud = [message for message in example.messages if _is_learnt(message)]
        return self._first(segments, loud, example.messages, row.cut)

    def of_text(self, expected: str, row: Encoded) -> Remark | None:
        """Return how a completion or document differs from what carries loss, but for special tokens; or None."""
        ids = np.asarray(row.target, np.int32) if row.trained is None else row.ids[row.trained]
        if self._is_unknown(row) or not len(ids):
            return None
        text = self.backend.text(ids)
        wanted, seen = self._through(expected), _squeezed(text).rstrip(BROKEN)
        if wanted in seen or (row.cut and _is_beginning(seen, wanted)):
            return None
        if _letters(expected) in _letters(text) or (row.cut and _is_beginning(_letters(text), _letters(expected))):
            return None
        return _difference(text, expected)

    def _first(
        self,
        segments: Sequence[str],
        loud: Sequence[Mapping[str, Any]],
        messages: Sequence[Mapping[str, Any]],
        cut: bool,
    ) -> Remark | None:
        text = "\n".join(segments)
        seen = _squeezed(text).rstrip(BROKEN)
        at = 0
        for message in loud:
            for piece in _said(message):
                wanted = self._through(piece)
                here = seen.find(wanted, at)
                if here < 0 and cut and _is_beginning(seen[at:], wanted):
                    return None  # the row ends here
                if here < 0 and _letters(piece) not in _letters(text):
                    return _difference(text, piece)
                if here >= 0:
                    seen, at = seen[:here] + "\0" + seen[here + len(wanted) :], here + 1
            if not cut and (missing := self._missing_leaf(message, seen)) is not None:
                return _difference(text, missing)
        if not self.everything:
            for message in messages:
                other = self._through(message.get("content") or "")
                if not _is_learnt(message) and len(other) >= SHORTEST and other in seen:
                    return Remark(
                        RemarkCode.LEARNT_DIFFERS,
                        f"what {message['role']} messages say",
                        _shown(text),
                        "nothing of: " + _shown(message["content"]),
                    )
        return None

    def _missing_leaf(self, message: Mapping[str, Any], seen: str) -> str | None:
        """Return the first text of a tool call that the learnt text lacks, in any order and spelling."""
        for call in message.get("tool_calls") or ():
            inner = call.get("function", call)
            for leaf in (inner.get("name", ""), *_leaves(inner.get("arguments"))):
                spellings = (leaf, json.dumps(leaf, ensure_ascii=False)[1:-1], json.dumps(leaf)[1:-1])
                if not any(self._through(one) in seen for one in spellings):
                    return str(leaf)
        return None

    def _learnt(self, row: Encoded) -> list[str]:
        """Return the text of each run of tokens that carry loss."""
        trained = np.asarray(row.trained)
        borders = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8), [0]])))
        return [self.backend.text(row.ids[start:end]) for start, end in zip(borders[::2], borders[1::2], strict=True)]

    def _through(self, text: str) -> str:
        """Return a text as the tokenizer gives it back, without white space."""
        (ids,) = self.backend.ids([text], specials=False)
        return _squeezed(self.backend.text(ids))

    def _is_unknown(self, row: Encoded) -> bool:
        return self.unk_id is not None and bool((row.ids == self.unk_id).any())


def _is_learnt(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight", 1) != 0)


def _said(message: Mapping[str, Any]) -> Iterator[str]:
    """Return the texts of a message, in the order in which a template writes them."""
    reasoning = next((message[name] for name in REASONING if message.get(name)), "")
    for text in (reasoning, message.get("content") or ""):
        yield from (part for part in text.replace("</think>", "<think>").split("<think>") if part.strip())


def _leaves(value: Any) -> Iterator[str]:
    """Yield the texts of a call's arguments, with their names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _letters(text: str) -> str:
    """Return letters and digits alone, in one form of Unicode."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text).casefold() if letter.isalnum())


def _is_beginning(seen: str, wanted: str) -> bool:
    """Return whether a text that was cut is a beginning of what is wanted, after a few marks of a template."""
    return len(seen) <= MARKS or any(wanted.startswith(seen[start:]) for start in range(MARKS + 1))


def _difference(found: str, expected: str) -> Remark:
    return Remark(RemarkCode.LEARNT_DIFFERS, "the answers of rows", _shown(found), _shown(expected))


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
