"""Models whose tokenizer is older than tokenizer.json: prepare makes one, with the ids of the older one."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from finetune_api.errors import ModelError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import ModelSpec
from finetune_trainer.model.files import TOKENIZER
from finetune_trainer.prepare.models import fetch, locate_model, read_model
from finetune_trainer.prepare.tokens.tokenizer import load_fast_tokenizer
from tests.support.models import make_bert, make_t5
from tests.support.models.corpus import CORPUS

TEXT = "Return a new list of the items"


def read(model: Path, work: Path) -> Any:
    source = locate_model(ModelSpec(uri=f"file://{model}"), {})
    return fetch(read_model(source, work), source, work)


def ids(folder: Path, task: Task, text: str = TEXT) -> list[int]:
    return list(Tokenizer.from_str(load_fast_tokenizer(folder, task).definition).encode(text).ids)


def without_fast_tokenizer(model: Path) -> Path:
    for name in (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    return model


def piece_model(**options: Any) -> bytes:
    written = io.BytesIO()
    lines = iter([*CORPUS] * 3)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=written, vocab_size=300, minloglevel=2, hard_vocab_limit=False, **options
    )
    return written.getvalue()


def test_a_list_of_words_becomes_the_same_fast_tokenizer(tmp_path: Path) -> None:
    model = make_bert(tmp_path / "model")
    known = Tokenizer.from_file(str(model / TOKENIZER))
    words = sorted(known.get_vocab(), key=known.get_vocab().__getitem__)
    expected = ids(model, Task.MASKED_LM)
    (without_fast_tokenizer(model) / "vocab.txt").write_text("\n".join(words) + "\n")
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    base = read(model, tmp_path / "work")
    assert ids(base.folder, Task.MASKED_LM) == expected
    assert base.files[TOKENIZER].is_file(), "mirrored beside the weights"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before, "the user's folder stays as it is"


def test_a_model_of_sentencepiece_becomes_a_fast_tokenizer_with_its_ids(tmp_path: Path) -> None:
    model = without_fast_tokenizer(make_t5(tmp_path / "model"))
    raw = piece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (model / "spiece.model").write_bytes(raw)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=raw)
    base = read(model, tmp_path / "work")
    assert ids(base.folder, Task.SEQ2SEQ) == [*pieces.encode(TEXT), pieces.eos_id()]


def test_a_vocabulary_that_cannot_be_read_is_refused_with_a_cure(tmp_path: Path) -> None:
    model = without_fast_tokenizer(make_t5(tmp_path / "model"))
    (model / "spiece.model").write_bytes(b"no model of SentencePiece")
    with pytest.raises(ModelError) as refused:
        read(model, tmp_path / "work")
    [problem] = refused.value.problems
    assert problem.code == "NoTokenizer"
    assert "none can be made of its spiece.model" in problem.message
    assert "save_pretrained" in problem.cure


def test_a_model_without_any_vocabulary_is_refused(tmp_path: Path) -> None:
    model = without_fast_tokenizer(make_bert(tmp_path / "model"))
    with pytest.raises(ModelError, match=r"has no tokenizer\.json and no vocabulary"):
        locate_model(ModelSpec(uri=f"file://{model}"), {})
