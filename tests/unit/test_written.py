"""What a row carries and a template does not write is named; what carries loss is what the row says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.messages import Task
from finetune_trainer.prepare.data.conversation import checked_messages
from finetune_trainer.prepare.data.examples import Example, ExampleLayout
from finetune_trainer.prepare.data.formats import Code, Fault
from finetune_trainer.prepare.observed.encoded import Encoded, RemarkCode
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.quality.judge import Context, judge
from finetune_trainer.prepare.quality.report import Finding, Severity
from finetune_trainer.prepare.tokens import templates
from finetune_trainer.prepare.tokens.dialect import Arguments, Blank, Content
from finetune_trainer.prepare.tokens.encoder import Encoder
from finetune_trainer.prepare.tokens.job_encoder import encoder_for
from finetune_trainer.prepare.tokens.render import Rendered
from finetune_trainer.prepare.tokens.spans import Speaker
from finetune_trainer.prepare.tokens.templates import CHATML
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer
from tests.support.chats import LONG, SHORT, chat_tokenizer
from tests.support.models import CORPUS
from tests.support.models import tokenizers as made
from tests.unit.test_templates import WITHOUT_END, encode, encoder, learnt, loaded, spec

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLED = [
    {"role": "user", "content": "Is it raining?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "Yes."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
REASONED = [SHORT[0], {**SHORT[1], "reasoning_content": "The page of settings has it."}]
TWICE = [*REASONED, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes.", "thinking": "Hm."}]

# the text ends after the last of all turns, as with Phi-3.5 and Phi-4-mini
ENDS_THE_TEXT = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '|' + m.content + '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant|' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"
)
# arguments are put together as text, and content is looked at for null, as with DeepSeek's first templates
TEXT_AND_NULL = (
    "{%- for m in messages -%}{%- if m.role == 'assistant' and m['content'] is none -%}"
    "{%- for c in m.tool_calls -%}{{- '<call>' + c['function']['name'] + ' ' + c['function']['arguments'] -}}"
    "{%- endfor -%}{{- '</s>' -}}{%- else -%}{{- m.role + ': ' + m['content'] + '</s>' -}}{%- endif -%}{%- endfor -%}"
)


def stock(name: str, folder: Path) -> Encoder:
    return encoder(folder, templates._shipped()[name])


def given(of: Encoder, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Encoded | Fault:
    (row,) = of([Example(1, "", messages=checked_messages("messages", list(messages)), tools=tuple(tools))])
    return row


LOST = {
    "tools and calls by ChatML": ("chatml", CALLED, TOOLS, "the tool_calls of messages[1] (assistant) and the tools"),
    "reasoning (jingyaogong/minimind#737)": ("qwen2_5", REASONED, (), "the reasoning_content of messages[1]"),
    "reasoning of earlier turns": ("nemotron_3_nano", TWICE, (), "the reasoning_content of messages[1]"),
    "a role": ("lfm2", CALLED, (), "the tool_calls of messages[1] (assistant)"),
    "reasoning in the content": (
        "glm4moe",
        [SHORT[0], {"role": "assistant", "content": "<think>Settings.</think>There."}, *SHORT],
        (),
        "the reasoning in the content of messages[1]",
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_a_row_of_which_something_would_not_be_learnt_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name, messages, tools, says = LOST[case]
    of = encoder(tmp_path, CHATML) if name == "chatml" else stock(name, tmp_path)
    row = given(of, messages, tools)
    assert isinstance(row, Fault), row
    assert row.code is Code.NOT_WRITTEN
    assert row.message.startswith(f"the chat template does not write {says}")
    # so is the next row of this kind, which is not rendered again, and rows without the field are taken
    assert given(of, messages, tools) == row
    assert isinstance(given(of, LONG), Encoded)


def test_reasoning_that_carries_no_loss_may_be_left_out(tmp_path: Path) -> None:
    quiet = [TWICE[0], {**TWICE[1], "weight": 0}, *TWICE[2:]]
    row = given(stock("nemotron_3_nano", tmp_path), quiet)
    assert isinstance(row, Encoded)
    assert [(one.code, one.subject) for one in row.remarks] == [
        (RemarkCode.NOT_WRITTEN, "'reasoning_content' of assistant messages")
    ]


def test_a_developer_speaks_as_system_where_the_template_knows_no_developer(tmp_path: Path) -> None:
    """sgl-project/sglang#40082."""
    messages = [{"role": "developer", "content": "Be brief."}, *SHORT]
    as_system = [{"role": "system", "content": "Be brief."}, *SHORT]
    for name in ("qwen3", "phi3", "glm4moe"):
        of = stock(name, tmp_path)
        assert of.dialect.developer == "system"
        assert encode(of, messages).ids.tolist() == encode(of, as_system).ids.tolist()
        assert "Be brief." in chat_tokenizer().decode(encode(of, messages).ids)
    assert stock("gptoss", tmp_path).dialect.developer == "developer"


def test_a_late_system_message_is_the_templates_business(tmp_path: Path) -> None:
    late = [*SHORT, {"role": "system", "content": "From now on in verse."}, *LONG[2:]]
    row = given(encoder(tmp_path, CHATML), late)
    assert isinstance(row, Encoded)
    assert "in verse" in chat_tokenizer().decode(row.ids)
    fault = given(encoder(tmp_path, "{% if messages[0].role == 'system' %}{% endif %}" + SKIPS_SYSTEM), late)
    assert isinstance(fault, Fault)
    assert "the content of messages[2] (system)" in fault.message


SKIPS_SYSTEM = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")


def test_a_template_gets_the_forms_that_it_takes(tmp_path: Path) -> None:
    of = encoder(tmp_path, TEXT_AND_NULL)
    assert (of.dialect.arguments, of.dialect.blank) == (Arguments.TEXT, Blank.NULL)
    row = given(of, CALLED)
    assert isinstance(row, Encoded)
    assert learnt(row) == '<call>weather {"city": "Oslo"}</s>|assistant: Yes.</s>'
    assert stock("qwen3", tmp_path).dialect.arguments is Arguments.OBJECT
    assert stock("smolvlm", tmp_path).dialect.content is Content.PARTS
    assert "Open the settings" in learnt(encode(stock("smolvlm", tmp_path), SHORT))


def test_a_template_that_ends_only_the_last_turn_can_be_used(tmp_path: Path) -> None:
    """axolotl-ai-cloud/axolotl#2089, huggingface/trl#5526."""
    of = encoder(tmp_path, ENDS_THE_TEXT)
    first, second = LONG[1]["content"], LONG[3]["content"]
    assert learnt(encode(of, SHORT)) == f"{first}<|im_end|></s>"
    assert learnt(encode(of, LONG)) == f"{first}<|im_end|>|{second}<|im_end|></s>"
    assert learnt(encode(of, [LONG[0], {**LONG[1], "weight": 0}, *LONG[2:]])) == f"{second}<|im_end|></s>"
    assert learnt(encode(stock("phi3_5", tmp_path), [LONG[0], {**LONG[1], "weight": 0}, *LONG[2:]])).startswith(second)
    assert [chat_tokenizer().decode([end]) for end in of.ends] == ["<|im_end|>", "</s>"]


ENDS = {
    "qwen2_5": ["<|im_end|>"],
    "llama3_1": ["<|eot_id|>"],
    "gptoss": ["<|return|>", "<|call|>"],  # never <|end|>, which stands within an answer
    "glm4moe": ["<|user|>", "<|observation|>"],
    "gemma3": ["<end_of_turn>"],
}


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_an_answer_is_known_of_the_template(name: str, tmp_path: Path) -> None:
    assert [chat_tokenizer().decode([end]) for end in stock(name, tmp_path).ends] == ENDS[name]


def test_marks_of_several_tokens_are_no_end(tmp_path: Path) -> None:
    tokenizer = loaded()
    plain = replace(tokenizer, definition=tokenizer.definition.replace("<|im_end|>", "<|other|>"))
    of = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.CHAT, 999, CHATML, tmp_path)
    row = encode(of, SHORT)
    assert of.ends == (chat_tokenizer().eos_token_id,)
    assert row.ids[-1] == chat_tokenizer().eos_token_id
    assert row.trained is not None
    assert row.trained[-1]
    outside = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.CHAT, 999, WITHOUT_END, tmp_path)
    assert learnt(encode(outside, SHORT)).endswith("<|im_end|>\n</s>"), "one span, that is one answer"


# ---------------------------------------------------------------- what the report says


def findings(of: Encoder, rows: Sequence[Sequence[Any]]) -> dict[str, Finding]:
    """Findings by their codes, of rows that are taken."""
    examples = [Example(line, "", messages=checked_messages("messages", list(row))) for line, row in enumerate(rows, 1)]
    seen = Observation(file="train.jsonl")
    seen.add(examples, [row for row in of(examples) if isinstance(row, Encoded)])
    report = judge(seen, None, Context(task=Task.CAUSAL_LM, max_length=of.limit))
    return {finding.code: finding for finding in report.findings}


def test_fields_that_are_not_written_are_warned_of_and_names_are_noted(tmp_path: Path) -> None:
    rated = [SHORT[0], {**SHORT[1], "rating": 5}]
    named = [{**SHORT[0], "name": "pat"}, SHORT[1]]
    found = findings(encoder(tmp_path, CHATML), [rated, SHORT, rated])["FieldNotWritten"]
    assert (found.severity, found.count) == (Severity.WARNING, 2)
    assert "does not write 'rating' of assistant messages: 2 rows (67 %)" in found.message
    assert found.excerpts[0].place == "train.jsonl:1"
    assert findings(encoder(tmp_path, CHATML), [named])["FieldNotWritten"].severity is Severity.NOTE


def test_reasoning_that_the_model_will_not_see_again_is_noted(tmp_path: Path) -> None:
    """modelscope/ms-swift#4810, #5793."""
    of = stock("qwen3", tmp_path)
    for rows in (TWICE, [SHORT[0], {"role": "assistant", "content": "<think>\nSettings.\n</think>\n\nThere."}, *SHORT]):
        found = findings(of, [rows])
        assert found["ReasoningNotKept"].severity is Severity.NOTE
    assert "ReasoningNotKept" not in findings(of, [REASONED])
    assert "EmptyReasoning" not in findings(of, [REASONED])
    assert findings(of, [SHORT])["EmptyReasoning"].count == 1


# ---------------------------------------------------------------- the proof


@pytest.mark.parametrize("shift", [-30, 9, "inverted"])
def test_loss_on_anything_else_than_the_answer_is_an_error_with_both_texts(
    shift: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(speaker: Speaker, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Any:
        speech = right(speaker, messages, tools)
        if shift == "inverted":
            return replace(speech, spans=((0, speech.spans[0][0]),))
        return replace(speech, spans=tuple((start + shift, end + shift) for start, end in speech.spans))

    of = encoder(tmp_path, CHATML)
    right = Speaker.__call__
    monkeypatch.setattr(Speaker, "__call__", wrong)
    found = findings(of, [SHORT])["LearntTextDiffers"]
    assert found.severity is Severity.ERROR
    assert SHORT[1]["content"] in found.message
    assert "would learn '" in found.message


def test_what_others_say_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(speaker: Speaker, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Any:
        speech = right(speaker, messages, tools)
        return replace(speech, spans=((0, len(speech.text)),))

    of = encoder(tmp_path, CHATML)
    right = Speaker.__call__
    monkeypatch.setattr(Speaker, "__call__", everything)
    assert "what user messages say" in findings(of, [SHORT])["LearntTextDiffers"].message


HARD = [
    "Café NAÏVE\u00a0\ufb01ne \u2013 “quoted” … 紙がない 🙂👩\u200d🔬 \uff46\uff55\uff4c\uff4c",
    "  spaces   and\ttabs\n\n\nlines \\n {json: true} <|im_end|> </s> <b>",
    "e\u0301 and \u0301 alone, İstanbul ẞ",
]


@pytest.mark.parametrize("kind", ["word pieces", "sentence pieces", "unigram"])
def test_a_tokenizer_that_changes_texts_raises_no_alarm(kind: str, tmp_path: Path) -> None:
    make, specials, unknown = {
        "word pieces": (made.word_piece, ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "[UNK]"),
        "sentence pieces": (made.sentence_piece_bpe, ("<s>", "</s>", "<unk>"), "<unk>"),
        "unigram": (made.unigram, ("<pad>", "</s>", "<unk>"), "<unk>"),
    }[kind]
    tokenizer = make(CORPUS, specials, "$A", "$A $B")
    plain = LoadedTokenizer(tokenizer.to_str(), {"eos_token": specials[1]}, 1, tokenizer.token_to_id(unknown))
    chats = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.CHAT, 60, CHATML, tmp_path)
    pairs = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.PAIR, 30, None, tmp_path)
    texts = encoder_for(spec(), Task.CAUSAL_LM, plain, ExampleLayout.TEXT, 30, None, tmp_path)
    for text in (*HARD, *CORPUS):
        messages = tuple({"role": role, "content": text} for role in ("user", "assistant"))
        rows = [
            *chats([Example(1, "", messages=messages)]),
            *pairs([Example(1, text, completion=text)]),
            *texts([Example(1, text)]),
        ]
        assert all(not row.remarks for row in rows if isinstance(row, Encoded)), text


def test_rows_of_one_structure_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = encoder(tmp_path, CHATML)
    encode(of, LONG)
    rendered: list[int] = []
    right = Speaker.rendered

    def counted(speaker: Speaker, messages: Sequence[Any], tools: Sequence[Any] = ()) -> Rendered:
        rendered.append(1)
        return right(speaker, messages, tools)

    monkeypatch.setattr(Speaker, "rendered", counted)
    encode(of, [{**message, "content": message["content"] + "!"} for message in LONG])
    assert not rendered
    encode(of, [{"role": "system", "content": "Be brief."}, *LONG])
    assert rendered
