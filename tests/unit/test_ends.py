"""Where rows begin and end, over the tokenizers of all tiny decoders: BOS once, and an end that the model learns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.model.ends import end_tokens
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.observed.encoded import IGNORED, Encoded
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.templates import given_template
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, load_fast_tokenizer
from finetune_trainer.worker.batches.padded import PaddedTokens
from tests.support.models import (
    make_gemma,
    make_gpt2,
    make_gpt_neox,
    make_llama,
    make_mistral,
    make_phi3,
    make_qwen2,
)

MAKERS = (make_llama, make_mistral, make_gemma, make_gpt2, make_gpt_neox, make_qwen2, make_phi3)
BEGINNING = MAKERS[:3]  # their tokenizers put BOS before a text
QUESTION, ANSWER = "Return all items.", "In a new list."
LAYOUTS = (ExampleLayout.TEXT, ExampleLayout.PAIR, ExampleLayout.CHAT)


@dataclass(frozen=True)
class Decoder:
    """A tiny decoder's tokenizer, as prepare and as transformers load it."""

    name: str
    loaded: LoadedTokenizer
    plain: Any

    def encoder(self, layout: ExampleLayout, folder: Path, template: str | None = None) -> Encoder:
        """Return prepare's encoder; conversations take a named template, `chatml` if none is given."""
        named = template or ("chatml" if layout is ExampleLayout.CHAT else None)
        spec = DatasetSpec.model_validate({"train": "file://rows.jsonl", "chatTemplate": named})
        text = given_template(named, {})
        return encoder_for(spec, Task.CAUSAL_LM, self.loaded, layout, 999, text, folder)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    from transformers import AutoTokenizer

    folder = request.param(tmp_path_factory.mktemp("decoder"))
    plain = AutoTokenizer.from_pretrained(folder)
    return Decoder(request.param.__name__, load_fast_tokenizer(folder, Task.CAUSAL_LM), plain)


def example(layout: ExampleLayout, begin: str = "") -> Example:
    question = begin + QUESTION
    if layout is ExampleLayout.CHAT:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWER}]
        return Example(1, "", messages=tuple(turns))
    return Example(1, question, completion=ANSWER if layout is ExampleLayout.PAIR else "")


def row_of(encoder: Encoder, one: Example) -> Encoded:
    (row,) = encoder([one])
    assert isinstance(row, Encoded), row
    return row


@pytest.mark.parametrize("decoder", BEGINNING, indirect=True, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize(
    ("layout", "begin"),
    [
        *[(layout, "") for layout in LAYOUTS],
        *[(layout, begin) for layout in LAYOUTS[:2] for begin in ("{bos}", "{bos} ", "{bos}{bos}")],
    ],
)
def test_bos_stands_once_whatever_the_text_begins_with(
    decoder: Decoder, layout: ExampleLayout, begin: str, tmp_path: Path
) -> None:
    row = row_of(decoder.encoder(layout, tmp_path), example(layout, begin.format(bos=decoder.plain.bos_token)))
    assert decoder.plain("a").input_ids[0] == decoder.plain.bos_token_id == row.ids[0]
    assert (row.ids == decoder.plain.bos_token_id).sum() == 1


@pytest.mark.parametrize("decoder", BEGINNING, indirect=True, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("name", ["llama3", "gemma", "chatml"])
def test_generation_begins_with_the_tokens_that_training_began_with(
    decoder: Decoder, name: str, tmp_path: Path
) -> None:
    encoder = decoder.encoder(ExampleLayout.CHAT, tmp_path, name)
    row = row_of(encoder, example(ExampleLayout.CHAT))
    asked = decoder.plain.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        chat_template=encoder.template.inference if encoder.template else None,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert row.ids[: len(asked)].tolist() == asked
    assert asked.count(decoder.plain.bos_token_id) == 1


def test_a_template_that_is_the_messages_alone_gives_one_bos(decoder: Decoder, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    encoder = decoder.encoder(ExampleLayout.CHAT, tmp_path, str(own))
    bos = decoder.plain.bos_token or ""
    row = row_of(encoder, example(ExampleLayout.CHAT, bos))
    without = row_of(encoder, example(ExampleLayout.CHAT))
    assert row.ids.tolist() == without.ids.tolist()
    assert row.trained is not None
    assert without.trained is not None
    assert row.trained.tolist() == without.trained.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_token_of_an_answer_is_learnt_and_is_an_end_of_the_artifact(
    decoder: Decoder, layout: ExampleLayout, tmp_path: Path
) -> None:
    """Whether eos is pad (Qwen, Phi 3), unknown (GPT-2), or another token than the template's end of turn."""
    encoder = decoder.encoder(layout, tmp_path)
    row = row_of(encoder, example(layout))
    assert row.trained is not None
    learnt = [token for token in row.ids[row.trained].tolist() if not decoder.plain.decode([token]).isspace()]
    assert learnt[-1] in end_tokens(None, encoder.ends, None)


def test_a_batch_hides_no_end_that_is_the_padding_too(decoder: Decoder, tmp_path: Path) -> None:
    encoder = decoder.encoder(ExampleLayout.PAIR, tmp_path)
    rows = [row_of(encoder, Example(1, QUESTION, completion=text)) for text in ("Yes.", ANSWER)]
    labels = [np.where(np.asarray(row.trained), row.ids, IGNORED) for row in rows]
    given = [{"input_ids": row.ids, "labels": of_row} for row, of_row in zip(rows, labels, strict=True)]
    batch = PaddedTokens(int(encoder.eos_id or 0))(given)
    assert (batch["targets"] == encoder.eos_id).sum() == len(rows)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row.ids) for row in rows]


def test_pairs_of_a_base_model_without_a_template_end_with_its_end_of_text(decoder: Decoder, tmp_path: Path) -> None:
    encoder = decoder.encoder(ExampleLayout.PAIR, tmp_path)
    assert encoder.ends == (decoder.plain.eos_token_id,)
