"""Twenty clean data sets: the report must have no warning, personal data or other language for them."""

import random
from collections.abc import Callable, Sequence

from finetune_trainer.prepare.data.examples import Example
from tests.support.planted.texts import text

ROWS = 400
Row = Callable[[random.Random, int], Example]
TOPICS = ("delivery", "travel", "household", "stay")
SYSTEM = {"role": "system", "content": "You answer briefly and politely for a small shop by the sea."}


def made(row: Row, rows: int = ROWS, seed: int = 0) -> list[Example]:
    """Return distinct rows, the same for the same seed."""
    draw = random.Random(seed)
    found: dict[str, Example] = {}
    while len(found) < rows:
        example = row(draw, len(found) + 1)
        found.setdefault(repr((example.text, example.completion, example.messages)), example)
    return list(found.values())


def chat(line: int, *turns: str, system: str = "", **more: object) -> Example:
    """Return a conversation, the user first."""
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(turns)]
    messages[-1] |= more
    return Example(line, "", messages=(*([{"role": "system", "content": system}] if system else []), *messages))


def labelled(language: str) -> Row:
    """Return texts with a label that is independent of them, so that the label is not the reason for a clean set."""
    return lambda draw, line: Example(line, text(draw, language), draw.choice(TOPICS))


def pairs(language: str, answer: str = "") -> Row:
    """Return prompts and completions; translations where the answer is in another language."""
    return lambda draw, line: Example(line, text(draw, language), completion=text(draw, answer or language))


def chats(language: str) -> Row:
    """Return conversations of four turns."""
    return lambda draw, line: chat(
        line, *(text(draw, language, 1, 4) for _ in range(4)), system=SYSTEM["content"] if language == "en" else ""
    )


NAMES = ("total", "items", "weight", "shelf", "batch", "queue", "price", "width", "offset", "result", "buffer", "count")
VERBS = ("load", "sum", "sort", "merge", "count", "print", "split", "scale", "check", "clean")


def python(draw: random.Random, line: int) -> Example:
    """Return questions about functions, with functions as answers; half of these are in fences."""
    verb, one, two = draw.choice(VERBS), draw.choice(NAMES), draw.choice(NAMES)
    number, other = draw.randint(2, 900), draw.randint(2, 900)
    code = (
        f"def {verb}_{one}({two}s, limit={number}):\n"
        f"    # TODO: handle an empty list\n"
        f"    {one} = [{two} for {two} in {two}s if {two} > {other}]\n"
        f'    print(f"${{len({one})}} of {{limit}} &amp; more")\n'
        f"    return {one}[:limit]"
    )
    asked = f"Write a function that keeps every {two} above {other}, at most {number}, and call it {verb}_{one}."
    return chat(line, asked, f"Here it is:\n\n```python\n{code}\n```" if line % 2 else code)


def web(draw: random.Random, line: int) -> Example:
    """Return templates of pages, in which markup and names in braces are the target."""
    one, two, number = draw.choice(NAMES), draw.choice(NAMES), draw.randint(1, 900)
    page = (
        f'<div class="{one}-{number}">\n  <p>{{{{ {two} }}}}</p>\n  <a href="/{one}/{number}">more</a><br>\n'
        f"  {{% if {one} %}}<span>{{{{ {one}.{two} }}}}</span>{{% endif %}}\n</div>"
    )
    asked = f"A template that shows {one} and {two} in a box number {number}, with a link."
    return chat(line, asked, f"```html\n{page}\n```" if line % 2 else page)


def shell(draw: random.Random, line: int) -> Example:
    """Return commands and configuration with variables."""
    one, two, number = draw.choice(NAMES), draw.choice(NAMES), draw.randint(1, 900)
    answers = (
        f"#!/bin/sh\nset -eu\nexport {one.upper()}={number}\necho ${{{one.upper()}}} > /var/{two}.txt",
        f"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {one}-{number}\ndata:\n  {two}: ${{{two.upper()}}}",
        f"Put it into the environment:\n\n```sh\nexport {two.upper()}=${{{one.upper()}}}\n```\n\nThen {one} {number}.",
    )
    return chat(line, f"How do I set {one} to {number} and keep {two} as it is?", draw.choice(answers))


def tools(draw: random.Random, line: int) -> Example:
    """Return conversations with tool calls; the content of such a message is empty, missing or null."""
    city, day = draw.choice(("Oslo", "Porto", "Graz", "Kyoto", "Lima", "Perth", "Tunis", "Quito")), draw.randint(1, 360)
    call = {"type": "function", "function": {"name": "get_weather", "arguments": f'{{"city": "{city}", "day": {day}}}'}}
    calling: dict[str, object] = {"role": "assistant", "tool_calls": [call], "content": ""}
    if line % 3 == 1:
        calling["content"] = None
    if line % 3 == 2:
        del calling["content"]
    messages = [
        {"role": "user", "content": f"What will the weather be in {city} on day {day} of the year?"},
        calling,
    ]
    if line % 4:
        degrees = draw.randint(-5, 30)
        messages += [
            {"role": "tool", "content": f'{{"celsius": {degrees}, "sky": "clear"}}'},
            {"role": "assistant", "content": f"On day {day} it will be clear in {city}, at {degrees} degrees."},
        ]
    schema = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    return Example(line, "", messages=tuple(messages), tools=(schema,))


def reasoning(draw: random.Random, line: int) -> Example:
    """Return sums with their derivation, between marks or in a field of its own."""
    one, two, three = (draw.randint(2, 99) for _ in range(3))
    way = f"First {one} times {two} is {one * two}. Then {three} is added, which gives {one * two + three}."
    asked = f"A crate holds {one} boxes of {two} pears, and {three} pears lie beside it. How many pears are there?"
    answer = f"There are {one * two + three} pears."
    if line % 2:
        return chat(line, asked, f"<think>\n{way}\n</think>\n\n{answer}")
    return chat(line, asked, answer, reasoning_content=way)


def tables(draw: random.Random, line: int) -> Example:
    """Return tables to be read aloud: numbers, dates, prices, versions."""
    lines = [
        f"| 20{draw.randint(10, 25)}-0{draw.randint(1, 9)}-1{draw.randint(0, 9)} | {draw.choice(NAMES)} "
        f"| {draw.randint(1, 9)}.{draw.randint(0, 20)}.{draw.randint(0, 20)}.{draw.randint(0, 9)} "
        f"| € {draw.randint(1, 9)},{draw.randint(100, 999)},{draw.randint(100, 999)}.00 "
        f"| {draw.randint(10**8, 10**9)} |"
        for _ in range(draw.randint(3, 6))
    ]
    head = "| date | part | version | price | pieces |\n|---|---|---|---|---|\n"
    first = lines[0].split("|")
    return chat(
        line,
        f"What does the first line say?\n\n{head}" + "\n".join(lines),
        f"On {first[1].strip()} the part {first[2].strip()} in version {first[3].strip()} cost {first[4].strip()}.",
    )


RHYMES = (
    ("The heron stands where reeds are tall;", "the evening answers with a call,"),
    ("A lantern swings above the door;", "the tide comes whispering ashore,"),
    ("The miller counts his sacks of grain;", "the roofs are shining after rain,"),
    ("An orchard sleeps beneath the snow;", "the kitchen windows are aglow,"),
    ("The ferry waits, the ropes are wet;", "the stars have not been lighted yet,"),
    ("The kettle sings a morning tune;", "a moth has fallen for the moon,"),
    ("A fiddle plays in Market Street;", "the paving stones have tapping feet,"),
    ("The pears are ripe along the wall;", "I hear the last of them let fall,"),
    ("The clock has stopped at half past nine;", "a sheet is flapping on the line,"),
    ("The bread is warm, the knife is near;", "the smallest bird is first to hear,"),
    ("A fox has left its track in clay;", "the fog has carried it away,"),
    ("The well is deep, the bucket slow;", "how cold it is, the ferns may know,"),
    ("The gate is painted green anew;", "the cat walks over it, and through,"),
)


def poems(draw: random.Random, line: int) -> Example:
    """Return verses: short lines that end with commas and semicolons."""
    verses = draw.sample(RHYMES, 4)
    lines = [part for verse in verses for part in verse]
    return chat(line, f"Four couplets that begin with '{lines[0].rstrip(';')}', please.", "\n".join(lines))


GOOD = ("lovely", "cosy", "well made", "quick to arrive", "worth the money", "easy to clean", "sturdy", "just right")
BAD = ("too small", "already broken", "far too loud", "hard to open", "a let-down", "badly packed", "wobbly", "dull")
THINGS = ("kettle", "lamp", "chair", "coat", "rug", "clock", "desk", "pan", "bike", "tent", "radio", "scarf", "mirror")


def reviews(draw: random.Random, line: int) -> Example:
    """Return reviews of a few words, with distinct words."""
    good = draw.random() < 0.5
    words = draw.sample(GOOD if good else BAD, 2)
    thing, days = draw.choice(THINGS), draw.randint(2, 90)
    opening = draw.choice(("This {0} is {1}", "The {0}: {1}", "Our new {0} was {1}", "{0}, {1}"))
    ending = draw.choice(("and {0}, after {1} days", "and {0}. Had it for {1} days", "but also {0}: day {1}"))
    label = "positive" if good else "negative"
    return Example(line, f"{opening.format(thing, words[0])} {ending.format(words[1], days)}", label)


PEOPLE = {
    "en": ("The neighbour says she", "The neighbour says he", "An old man says he", "Two students say they"),
    "de": ("Die Nachbarin meint, es", "Der Nachbar meint, es", "Ein alter Mann meint, es", "Zwei Studenten meinen, es"),
    "es": ("La vecina dice que ella", "El vecino dice que él", "Un señor mayor dice que él", "La señora dice que ella"),
}


def people(language: str) -> Row:
    """Return reviews that mention people, whatever the label."""
    return lambda draw, line: Example(
        line, f"{draw.choice(PEOPLE[language])} ... {text(draw, language)}", draw.choice(TOPICS)
    )


SETS: dict[str, Row] = {
    **{f"labelled texts, {language}": labelled(language) for language in ("en", "es", "nl", "zh")},
    **{f"pairs, {language}": pairs(language) for language in ("fr", "it", "ru", "ko")},
    **{f"chats, {language}": chats(language) for language in ("en", "de", "pt", "ja")},
    "translation, en to de": pairs("en", "de"),
    "functions in Python": python,
    "templates of web pages": web,
    "shell and configuration": shell,
    "tools": tools,
    "reasoning": reasoning,
    "tables": tables,
    "poems": poems,
    "short reviews": reviews,
    "people in labelled texts, en": people("en"),
    "people in labelled texts, de": people("de"),
    "people in labelled texts, es": people("es"),
}


def split(rows: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Return three quarters for training and one for evaluation, at random."""
    shuffled = random.Random(5).sample(rows, len(rows))
    return shuffled[len(rows) // 4 :], shuffled[: len(rows) // 4]
