"""What looked like a fault and is none: each was once told as a warning of a clean data set."""

from dataclasses import replace

import pytest

from finetune_trainer.prepare.data.alpaca import asked, prompt
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.code import is_code, looks_like_code, prose
from finetune_trainer.prepare.observed.texts import sides
from finetune_trainer.prepare.quality.people import known, mentioned
from finetune_trainer.prepare.quality.personal import findings_in
from finetune_trainer.prepare.quality.scripts import script_of
from tests.support.planted.clean import SETS, chat, made, split
from tests.support.planted.run import false_alarms, report_on


def codes(train: list[Example], evaluation: list[Example] | None = None) -> set[str]:
    return {finding.code for finding in report_on(train, evaluation or []).findings}


NOBODY = [
    ("es", "Los dos platos son muy buenos, y las judías verdes también."),
    ("es", "Cristiano Ronaldo trabaja en el extranjero."),
    ("de", "Man sagt, sie sei gut, und er auch."),
    ("en", "I am a senior software engineer and like Mexican tacos and Indian curry."),
    ("en", "The disabled button has a foreign key, a black box and a man page."),
    ("fr", "Il y a des tables noires, elles sont belles."),
    ("it", "I vecchi libri cinesi e il motore nero."),
    ("pt", "O carro negro, ele está na rua; ela é larga."),
    ("nl", "De oude auto is van haar plaats gereden."),
    ("ja", "大丈夫です。工夫しました。"),
    ("zh", "其他问题请联系客服。"),
]
SOMEBODY = [
    ("en", "Two Mexican workers came.", "Hispanic people"),
    ("en", "He is Jewish.", "Jews"),
    ("es", "los mexicanos son amables", "Hispanic people"),
    ("fr", "un étudiant marocain", "Arabs"),
    ("de", "Die alte Frau kam.", "old people"),
    ("it", "una donna nigeriana", "Black people"),
    ("pt", "uma senhora idosa", "old people"),
    ("nl", "de Marokkaanse jongen", "Arabs"),
    ("ja", "その女性は来ました。", "women"),
    ("zh", "这位女士来了。", "women"),
]


@pytest.mark.parametrize(("language", "text"), NOBODY)
def test_a_word_that_means_a_thing_is_no_mention_of_people(language: str, text: str) -> None:
    assert mentioned(text, language) == set()


@pytest.mark.parametrize(("language", "text", "group"), SOMEBODY)
def test_people_are_found_in_each_language_that_is_asked(language: str, text: str, group: str) -> None:
    assert group in mentioned(text, language)
    assert {own for own, _, _ in SOMEBODY} == set(known())


def test_a_language_without_lists_is_named_as_not_asked() -> None:
    questions = report_on(*split(made(SETS["pairs, ru"]))).questions
    assert [one.not_asked for one in questions if one.name == "mentions of groups of people, in Russian"] == [
        "there are no lists of groups for this language"
    ]
    assert all(bool(one.asked) != bool(one.not_asked) for one in questions)


def test_one_question_under_two_system_messages_is_two_tasks() -> None:
    rows = []
    for line in range(1, 201, 2):
        text = f"Order {line} came late, and the box was open."
        rows.append(chat(line, text, "negative", system="Say the mood of the text."))
        rows.append(chat(line + 1, text, "delivery", system="Say the topic of the text."))
    assert "ConflictingLabels" not in codes(rows)
    assert "ConflictingLabels" in codes([replace(row, messages=row.messages[1:]) for row in rows])


def test_one_question_with_other_tools_is_another_row() -> None:
    rows = [chat(line, f"How warm is it in town {line}?", "yes" if line % 2 else "no") for line in range(1, 101)]
    other = [replace(row, tools=({"name": "thermometer"},)) for row in rows]
    assert "DuplicateRows" not in codes([*rows, *other])


@pytest.mark.parametrize("content", ["", None, "missing"])
def test_a_call_of_a_tool_is_an_answer_whatever_its_content_is(content: str | None) -> None:
    rows = []
    for line in range(1, 101):
        function = {"name": "get_weather", "arguments": {"city": f"Town {line}"}}
        call = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}], "content": content}
        if content == "missing":
            del call["content"]
        rows.append(Example(line, "", messages=({"role": "user", "content": f"The weather of {line}?"}, call)))
    assert not codes(rows) & {"EmptyAnswers", "OneWordAnswers", "DuplicateRows"}


def test_the_frame_that_alpaca_rows_get_is_no_leftover() -> None:
    rows = [Example(n, prompt(f"Count to {n}.", "slowly" * (n % 2)), completion=f"\n{n}, done") for n in range(1, 101)]
    assert "TemplateLeftovers" not in codes(rows)
    assert asked(prompt("Count.", "slowly")) == "Count.\n\nslowly"
    assert asked(prompt("Count.", "")) == "Count."
    assert asked("### Instruction: no frame of ours") == "### Instruction: no frame of ours"


@pytest.mark.parametrize(
    "text",
    [
        "def greet(name):\n    return f'Hello {name}'",
        '<div class="a">\n  <p>Hello {{ name }}</p>\n</div>',
        "SELECT name FROM users WHERE id = 1;",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Release.Name }}",
        "# TODO: write this\nx = 5\nprint(x)",
        "kubectl get pods -n ${NS}",
    ],
)
def test_code_is_told_without_its_fence(text: str) -> None:
    assert looks_like_code(text)


@pytest.mark.parametrize(
    "text",
    [
        "Dear {{name}},\nthank you for your order.",
        "<p>Our shop is open on Mondays.<br>Come and see us.</p>",
        "The woods are lovely, dark and deep;\nBut I have promises to keep;",
        "Step 1: open the box.\nStep 2: take out the cup.",
        "Import duties apply to all parcels.",
        "Name: Anna\nAge: 5\nCity: Bonn",
        "TODO: write the answer",
    ],
)
def test_prose_is_no_code(text: str) -> None:
    assert not looks_like_code(text)


def test_fences_and_inline_code_are_left_out() -> None:
    assert prose("Here:\n```python\nx = 1\n```\nThat is `x` all.").split() == ["Here:", "That", "is", "all."]
    raw = b"Here:\n```\n{{x}}\n```\nand {{y}}"
    assert is_code(raw, raw.index(b"{{x"))
    assert not is_code(raw, raw.index(b"{{y"))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("東京都の新しい図書館は、来週の月曜日に開館します。", "Japanese"),
        ("图书馆下周一开门。", "Han"),
        ("도서관은 다음 주 月曜日에 문을 엽니다.", "Korean"),
        ("カタカナ", "Japanese"),
    ],
)
def test_the_scripts_of_east_asia_are_told_apart(text: str, script: str) -> None:
    assert script_of(text) == script


def test_an_answer_of_weight_0_is_given_and_not_learnt() -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "weight": 0},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four", "weight": 1},
    ]
    own = sides(Example(1, "", messages=tuple(messages)), False)
    assert (own.given, own.learnt, own.last) == ("one\ntwo\nthree", "four", "four")
    assert sides(Example(1, "", messages=tuple(messages[:2])), False).last is None


NOT_PERSONAL = [
    "In 1990-1995, and again 2001 2005.",
    "It costs 1 234 567 euros, or 1,234,567.89.",
    "Take version 1.2.3.4 or v10.0.19041.1.",
    "Born 12.05.1998 at 12:30:45; updated 2024-01-02 10:20:30.",
    "ISBN 978-3-16-148410-0, order 4711-0815-2000.",
    "Ping 192.168.0.1 and 127.0.0.1.",
    "3.14159265358979 and 0.123456789 and 1.618 033 988 749",
    "2 4 8 16 32 64 128 256, and 10 20 30 40 50",
    "card = 4929421388760140; phone = 2127365000",
    "The mac is 00:1B:44:11:3A:B7.",
]


@pytest.mark.parametrize("text", NOT_PERSONAL)
@pytest.mark.parametrize("language", ["en", "de", "fr", "es", "it", "pt", "nl"])
def test_years_prices_versions_and_code_are_no_personal_data(text: str, language: str) -> None:
    assert findings_in(text, frozenset({language})) == {}


@pytest.mark.parametrize(
    "name", ["chats, ja", "shell and configuration", "tools", "tables", "poems", "people in labelled texts, es"]
)
def test_a_clean_set_raises_no_alarm(name: str) -> None:
    assert false_alarms(name) == []


@pytest.mark.matrix
@pytest.mark.parametrize("name", list(SETS))
def test_no_clean_set_raises_an_alarm(name: str) -> None:
    assert false_alarms(name) == []
