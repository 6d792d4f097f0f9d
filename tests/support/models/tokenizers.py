"""The fast tokenizers of the tiny models: byte-level BPE, WordPiece and SentencePiece's Unigram and BPE."""

from collections.abc import Iterable, Sequence
from typing import Any

from tests.support.models.corpus import VOCABULARY, sentence_pieces, word_pieces


def byte_level(corpus: Iterable[str], specials: Sequence[str], single: str = "$A", pair: str = "$A $B:1") -> Any:
    """Return a byte-level BPE, as GPT-2's: any text, no unknown token. `single` and `pair`: templates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return _adding(tokenizer, specials, single, pair)


def word_piece(corpus: Iterable[str], specials: Sequence[str], single: str, pair: str) -> Any:
    """Return BERT's lower-casing WordPiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate([*specials, *word_pieces(corpus)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _adding(tokenizer, specials, single, pair)


def unigram(corpus: Iterable[str], specials: Sequence[str], single: str, pair: str) -> Any:
    """Return SentencePiece's Unigram, as T5's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [*((token, 0.0) for token in specials), *sentence_pieces(corpus)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=list(specials).index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _adding(tokenizer, specials, single, pair)


def sentence_piece_bpe(corpus: Iterable[str], specials: Sequence[str], single: str, pair: str) -> Any:
    """Return SentencePiece's BPE with bytes for unknown characters, as Mistral's and Gemma's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    known = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=known, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return _adding(tokenizer, specials, single, pair)


def _adding(tokenizer: Any, specials: Sequence[str], single: str, pair: str) -> Any:
    from tokenizers import processors

    used = [(token, number) for number, token in enumerate(specials) if token in f"{single} {pair}"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    return tokenizer


def fast(tokenizer: Any, **named: Any) -> Any:
    """Return a fast tokenizer of transformers; `named`: its special tokens and `model_max_length`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
