"""Ids put together from remembered words are those of the `tokenizers` library, for every character let through."""

import json
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from finetune_trainer.prepare.tokens.backend import Backend
from finetune_trainer.prepare.tokens.words import EXPRESSIONS, GPT2, STABLE, WordSplitter
from tests.support.matrix import first_of
from tests.support.models import CORPUS

STABLE_CHARACTERS = [chr(code) for start, end in STABLE for code in range(start, end + 1)]
MARKS = ("<|im_start|>", "<|im_end|>", "<|im_end|>x")
SPANS = st.lists(st.integers(0, 60), max_size=6, unique=True).map(sorted)
CORPORA = [*CORPUS, "naïve café 紙がない 🙂 Ελλάδα Привет 12,345.67 can't WE'LL", "a\n\n  b\t c\r\n"]
PIECES = [*"abz'sS012 .,!?\n\r\t é紙🙂\u0301\xa0\u2019", "'ll", "'LL", "  ", "\n\n", *MARKS]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.lists(st.sampled_from(STABLE_CHARACTERS), max_size=40).map("".join),
    st.text(max_size=40),
)


@lru_cache(maxsize=16)
def tokenizer(expression: str, composed: bool = False, bos: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression == GPT2)
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    made.pre_tokenizer = byte_level if expression == GPT2 else pre_tokenizers.Sequence([split, byte_level])
    if composed:
        made.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(CORPORA * 3, trainer)
    made.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{MARKS[0]} $A {MARKS[1]}", special_tokens=[(mark, made.token_to_id(mark)) for mark in MARKS[:2]]
        )
    return made


@lru_cache(maxsize=16)
def both(expression: str, composed: bool = False, bos: bool = False) -> tuple[Backend, Backend]:
    made = tokenizer(expression, composed, bos)
    words = WordSplitter.of(made.to_str())
    assert words is not None
    return Backend(made), Backend(made, words)


@pytest.mark.parametrize("expression", first_of(sorted(EXPRESSIONS), 3))
def test_every_character_let_through_is_parted_alike(expression: str) -> None:
    library, ours = both(expression)
    # each between letters, numbers, blanks and signs, so that its class shows
    texts = [f"a{char}b{char}1{char} {char}.{char}{char}\n{char}'s" for char in STABLE_CHARACTERS]
    expected, found = library.ids(texts), ours.ids(texts)
    wrong = [
        f"U+{ord(char):04X}"
        for char, theirs, own in zip(STABLE_CHARACTERS, expected, found, strict=True)
        if theirs.tolist() != own.tolist()
    ]
    assert not wrong


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, borders=SPANS, expression=st.sampled_from(sorted(EXPRESSIONS)), composed=st.booleans())
def test_ids_and_marks_are_those_of_the_library(text: str, borders: list[int], expression: str, composed: bool) -> None:
    library, ours = both(expression, composed)
    inside = [border for border in borders if border <= len(text)]
    spans = list(zip(inside[::2], inside[1::2], strict=False))
    (theirs, their_mask), (own, own_mask) = library.marked([text], [spans])[0], ours.marked([text], [spans])[0]
    assert own.tolist() == theirs.tolist()
    if not composed:  # a normalizer may shift characters: its texts are compared by their ids
        assert own_mask.tolist() == their_mask.tolist()


@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_what_a_tokenizer_adds_to_a_text_is_added(text: str) -> None:
    library, ours = both(GPT2, bos=True)
    for specials in (True, False):
        assert ours.ids([text], specials)[0].tolist() == library.ids([text], specials)[0].tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"added_tokens": [{"id": 1, "content": "<x>", "single_word": False, "lstrip": True, "rstrip": False,
                           "normalized": False, "special": True}]},
    ],
    ids=["another way to part words", "a normalizer", "a blank before the text", "a token that takes blanks along"],
)  # fmt: skip
def test_any_other_tokenizer_is_left_to_the_library(change: dict[str, object]) -> None:
    parts = json.loads(tokenizer(GPT2).to_str())
    assert WordSplitter.of(json.dumps(parts)) is not None
    assert WordSplitter.of(json.dumps({**parts, **change})) is None


def test_characters_whose_class_changed_between_versions_of_unicode_are_left_to_the_library() -> None:
    words = WordSplitter.of(tokenizer(GPT2).to_str())
    assert words is not None
    assert words.fits("plain")
    assert words.fits("naïve 紙 🙂")
    assert not words.fits("\u0558")
    assert not words.fits("\u017f")
