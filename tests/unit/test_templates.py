"""Conversations become the tokens that transformers makes of them, with the assistant's words to learn."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.errors import DataError, SpecError
from finetune_api.messages import Task
from finetune_api.v1alpha1 import DatasetSpec
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.job_encoder import check_packing, encoder_for
from finetune_trainer.prepare.tokens.templates import CHATML, given_template
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer
from tests.support.chats import CONVERSATIONS, LONG, SHORT, SYSTEM, chat_tokenizer

MARKED = ("qwen3", "qwen2_5", "llama3", "phi3", "gemma3", "glm4moe", "lfm2", "cohere")
STOCK_ONLY = ("llama3_1", "qwen2_5")

# marks the answer, but leaves its end outside, as templates in the wild do
WITHOUT_END = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
)
UNMARKED = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
COUNTS_ALL = "{{- messages | length }}" + UNMARKED


def loaded(template: str | None = None) -> LoadedTokenizer:
    tokenizer = chat_tokenizer()
    return LoadedTokenizer(
        tokenizer.backend_tokenizer.to_str(),
        dict(tokenizer.special_tokens_map),
        tokenizer.eos_token_id,
        size=len(tokenizer),
        template=template,
    )


def spec(**fields: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"train": "file://train.jsonl", **fields})


def encoder(tmp_path: Path, given: str | None, limit: int = 4096, **fields: Any) -> Encoder:
    return encoder_for(spec(**fields), Task.CAUSAL_LM, loaded(), ExampleLayout.CHAT, limit, given, tmp_path)


def encode(of: Encoder, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> Encoded:
    (row,) = of([Example(1, "", messages=tuple(messages), tools=tuple(tools))])
    assert isinstance(row, Encoded), row
    return row


def learnt(row: Encoded) -> str:
    """The trained tokens as text, with a bar where others lie between."""
    assert row.trained is not None
    parts: list[list[int]] = [[]]
    for token, trained in zip(row.ids.tolist(), row.trained.tolist(), strict=True):
        if trained:
            parts[-1].append(token)
        elif parts[-1]:
            parts.append([])
    return "|".join(chat_tokenizer().decode(part) for part in parts if part)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["short", "long", "system"])
@pytest.mark.parametrize("name", ["chatml", *MARKED])
def test_tokens_and_mask_are_those_of_transformers(name: str, conversation: list[dict[str, Any]], tmp_path: Path):
    text = given_template(name, {})
    assert text
    training = templates.chat_template(text).training
    try:
        expected = chat_tokenizer().apply_chat_template(
            list(conversation), chat_template=training, return_dict=True, return_assistant_tokens_mask=True
        )
    except Exception as error:
        pytest.skip(f"transformers refuses it too: {error}")
    row = encode(encoder(tmp_path, text), conversation)
    assert row.ids.tolist() == expected["input_ids"]
    ours, theirs = row.trained.tolist(), [bool(bit) for bit in expected["assistant_masks"]]
    # never less; more only where transformers forgets the rest of a character or the end of the turn
    assert all(our >= their for our, their in zip(ours, theirs, strict=True))
    assert sum(ours) - sum(theirs) <= 2 * sum(message["role"] == "assistant" for message in conversation)


@pytest.mark.parametrize("name", STOCK_ONLY)
def test_a_template_without_marks_gives_the_answers_by_what_each_message_adds(name: str, tmp_path: Path):
    text = templates._shipped()[name]
    made = encoder(tmp_path, text)
    unmarked = replace(made, template=templates.ChatTemplate(text, text))
    expected = chat_tokenizer().apply_chat_template(list(LONG), chat_template=text, return_dict=True)["input_ids"]
    row = encode(unmarked, LONG)
    assert row.ids.tolist() == expected
    said = learnt(row).split("|")
    assert "Open the settings page" in learnt(row)
    assert "Refill it" in learnt(row)
    assert "password?" not in learnt(row)
    assert len([part for part in said if "page" in part or "Refill" in part]) == 2


def test_the_end_of_the_turn_is_learnt_even_if_the_marks_stop_before_it(tmp_path: Path):
    row = encode(encoder(tmp_path, WITHOUT_END), LONG)
    assert learnt(row) == f"{LONG[1]['content']}<|im_end|>|{LONG[3]['content']}<|im_end|>"


def test_a_message_of_weight_zero_is_not_learnt(tmp_path: Path):
    quiet = [LONG[0], {**LONG[1], "weight": 0}, *LONG[2:]]
    assert learnt(encode(encoder(tmp_path, CHATML), quiet)) == f"{LONG[3]['content']}<|im_end|>\n"


def test_loss_on_all_learns_everything_but_messages_of_weight_zero(tmp_path: Path):
    of = encoder(tmp_path, CHATML, lossOn="all")
    assert bool(encode(of, LONG).trained.all())
    said = learnt(encode(of, [LONG[0], {**LONG[1], "weight": 0}, *LONG[2:]]))
    assert "How do I reset" in said
    assert "Open the settings" not in said


def test_an_end_of_text_is_added_only_where_the_template_writes_no_end(tmp_path: Path):
    eos = chat_tokenizer().eos_token_id
    assert encode(encoder(tmp_path, CHATML), LONG).ids[-1] != eos
    ended = encode(encoder(tmp_path, UNMARKED), LONG)
    assert ended.ids[-1] == eos
    assert ended.trained[-1]
    assert eos not in encode(encoder(tmp_path, CHATML), LONG).ids


def test_tools_and_calls_reach_the_template(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "Yes."},
    ]
    text = given_template("qwen3", {})
    training = templates.chat_template(text or "").training
    expected = chat_tokenizer().apply_chat_template(messages, tools=tools, chat_template=training, return_dict=True)[
        "input_ids"
    ]
    row = encode(encoder(tmp_path, text), messages, tools)
    assert row.ids.tolist() == expected
    assert '"city": "Oslo"' in learnt(row)
    assert '"parameters"' not in learnt(row)


def test_the_stock_template_goes_with_the_model_and_its_marked_version_trains():
    stock = templates._shipped()["qwen3"]
    chosen = templates.chat_template(stock)
    assert chosen.inference == stock
    assert chosen.marked
    assert "{%- generation %}" not in stock


def test_a_template_comes_from_a_file(tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text(UNMARKED, "utf-8")
    assert given_template(str(path), {}) == UNMARKED
    assert given_template(f"file://{path}", {}) == UNMARKED


@pytest.mark.parametrize(
    ("wanted", "code", "cure"),
    [
        ("chatlm", "UnknownTemplate", "did you mean chatml?"),
        ("zzz", "UnknownTemplate", "llama3"),
        ("missing.jinja", "FileNotFound", "correct the path"),
    ],
)
def test_a_template_that_is_not_there_is_refused(wanted: str, code: str, cure: str):
    with pytest.raises(SpecError) as caught:
        given_template(wanted, {})
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (code, "spec.dataset.chatTemplate")
    assert cure in problem.cure


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (COUNTS_ALL, "TemplateNotPrefixConsistent"),
        ("{{ raise_exception('only images') }}", "InvalidChatTemplate"),
        ("{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}", "InvalidChatTemplate"),
    ],
    ids=["counts", "raises", "reaches into Python"],
)
def test_a_template_that_cannot_work_is_refused_before_any_row(template: str, code: str, tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        encoder(tmp_path, template)
    assert caught.value.problems[0].code == code


def test_an_older_version_of_a_known_template_is_refused_with_the_name_of_the_known_one(tmp_path: Path):
    """Qwen3's first models have a template that differs in 20 lines from the one that TRL has a marked version of."""
    older = templates._shipped()["qwen3"].replace("message.reasoning_content is string", "message.reasoning_content")
    with pytest.raises(SpecError) as caught:
        encoder(tmp_path, older)
    (problem,) = caught.value.problems
    assert problem.code == "TemplateNotPrefixConsistent"
    assert "in spec.dataset.chatTemplate, such as qwen3 (another version of this one: 99% of the lines" in problem.cure
    with pytest.raises(SpecError) as caught:
        encoder(tmp_path, COUNTS_ALL)
    assert caught.value.problems[0].cure.endswith("such as chatml")


def test_a_file_that_is_no_template_is_refused(tmp_path: Path):
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}", "utf-8")
    with pytest.raises(SpecError, match="InvalidChatTemplate"):
        given_template(str(path), {})


def test_conversations_without_any_template_are_refused_with_the_cure(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        encoder(tmp_path, None)
    (problem,) = caught.value.problems
    assert problem.code == "NoChatTemplate"
    assert "spec.dataset.chatTemplate, such as chatml" in problem.cure


def test_marks_that_the_tokenizer_lacks_are_told(tmp_path: Path):
    tokenizer = loaded()
    plain = replace(tokenizer, definition=tokenizer.definition.replace("<|im_start|>", "<|other|>"))
    made = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.CHAT, 99, CHATML, tmp_path)
    expected = "the tokenizer has no token <|im_start|>: such marks are learnt as plain text, several tokens each"
    assert made.notes == (expected,)
    assert encoder(tmp_path, CHATML).notes == ()


def test_a_row_that_the_template_refuses_is_a_fault_of_its_line(tmp_path: Path):
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    of = encoder(tmp_path, text)
    rows = of([Example(7, "", messages=tuple(SYSTEM)), Example(8, "", messages=tuple(SHORT))])
    assert rows[0] == Fault(
        7, Code.TEMPLATE_FAILED, "the chat template refuses the conversation: System role not supported"
    )
    assert isinstance(rows[1], Encoded)


def test_a_conversation_cut_before_its_first_answer_teaches_nothing(tmp_path: Path):
    (row,) = encoder(tmp_path, CHATML, limit=4)([Example(3, "", messages=tuple(SHORT))])
    assert isinstance(row, Fault)
    assert row.code is Code.NOTHING_TO_LEARN


def test_the_date_in_a_template_does_not_move(tmp_path: Path):
    from finetune_trainer.prepare.tokens.render import Renderer

    assert Renderer("{{ strftime_now('%Y-%m-%d') }}", {})(SHORT).text == "2024-07-26"


def test_packing_is_refused_for_classification():
    check_packing(spec(packing=True), Task.CAUSAL_LM)
    with pytest.raises(SpecError) as caught:
        check_packing(spec(packing=True), Task.CLASSIFICATION)
    assert caught.value.problems[0].code == "PackingNotForTask"
