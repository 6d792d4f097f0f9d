"""Faults, each planted into a clean set: those that a careful colleague would find in it."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from finetune_trainer.prepare.data.alpaca import prompt
from finetune_trainer.prepare.data.examples import Example
from tests.support.planted.clean import SETS, TOPICS, chat, chats, labelled, made, people, split, tools
from tests.support.planted.texts import sentence, text

Rows = list[Example]


@dataclass(frozen=True)
class Fault:
    """A fault of a data set, and the code that the report must give.

    Attributes:
        limit: maximum tokens of a row.
        says: text that the finding must contain.
    """

    name: str
    code: str
    train: Rows
    evaluation: Rows
    says: str = ""
    limit: int = 512


def every(number: int, change: Callable[[Example], Example], rows: Rows) -> Rows:
    """Change each `number`-th row."""
    return [change(row) if place % number == 0 else row for place, row in enumerate(rows)]


def target_of(row: Example) -> str:
    """Return the text that a row teaches; of a labelled row, its text."""
    if row.messages:
        return str(row.messages[-1]["content"])
    return row.completion or row.text


def with_target(row: Example, text: str) -> Example:
    """Return the row with another target."""
    if row.messages:
        return replace(row, messages=(*row.messages[:-1], {**row.messages[-1], "content": text}))
    return replace(row, completion=text) if row.completion else replace(row, text=text)


def with_words(words: str) -> Callable[[Example], Example]:
    """Return a change that adds some words after the first sentence."""

    def change(row: Example) -> Example:
        first, point, others = target_of(row).partition(". ")
        return with_target(row, f"{first}{point or ' '}{words} {others}")

    return change


def planted(
    name: str, code: str, base: str, change: Callable[[Example], Example], number: int, says: str = ""
) -> Fault:
    """Return a fault of single rows: each `number`-th."""
    train, evaluation = split(made(SETS[base]))
    return Fault(name, code, every(number, change, train), evaluation, says)


# (kind, language, text)
PERSONAL = (
    ("e-mail", "chats, en", "You reach me at karin.holm@nordlicht-moebel.se after six."),
    ("e-mail", "chats, de", "Schreib an t.brandl@kachelofen-brandl.at oder komm vorbei."),
    ("telephone", "chats, en", "Ring (312) 664-9021 and ask for the stock room."),
    ("telephone", "labelled texts, en", "My number is 020 7183 8750."),
    ("telephone", "pairs, fr", "Vous pouvez joindre l'atelier au 04 78 37 21 90."),
    ("telephone", "pairs, fr", "Son portable: 06.72.18.45.33"),
    ("telephone", "chats, de", "Am besten unter 0171 4938275 melden."),
    ("telephone", "chats, de", "Das Büro hat die 089/21093466."),
    ("telephone", "labelled texts, es", "El taller contesta en el 934 12 87 65."),
    ("telephone", "pairs, it", "Mi chiami al 347 812 6659 dopo le otto."),
    ("telephone", "chats, pt", "O telefone da loja é (21) 2556-4182."),
    ("telephone", "chats, ja", "連絡先は 03-5468-2197 です。"),
    ("telephone", "labelled texts, zh", "请打 138 2716 4459 找他。"),
    ("telephone", "labelled texts, nl", "Bel gerust 06-24817735 in het weekend."),
    ("telephone", "reviews", "+61 2 9374 4000"),
    ("telephone", "pairs, ru", "Звоните: +7 495 739-70-00."),
    ("IBAN", "chats, de", "Bitte auf DE75 5121 0800 1245 1261 99 überweisen."),
    ("IBAN", "labelled texts, nl", "Maak het over naar NL91ABNA0417164300 voor vrijdag."),
    ("IBAN", "chats, en", "The account is GB29 NWBK 6016 1331 9268 19."),
    ("card", "chats, en", "It was charged to 4929 4213 8876 0140, which I did not allow."),
    ("card", "pairs, it", "La carta era 5425233430109903."),
    ("persons", "chats, en", "The form wants her SSN, which is 472-81-0094."),
    ("persons", "labelled texts, en", "National insurance: JG 10 37 59 A"),
    ("persons", "labelled texts, es", "Mi DNI es 48213907"),
    ("persons", "pairs, fr", "Numéro de sécurité sociale : 2 69 05 49 588 157"),
    ("persons", "pairs, it", "Il codice fiscale è "),
    ("persons", "chats, pt", "O CPF dele é 390.533.447-05, confirme por favor."),
    ("persons", "labelled texts, nl", "Mijn BSN is 123456782."),
    ("IP", "chats, en", "The login came from 93.184.215.14 at night."),
    ("IP", "chats, de", "Der Zugriff kam von 2a02:8109:9a40:1c4::77."),
)


def _personal() -> list[Fault]:
    found = []
    for kind, base, words in PERSONAL:
        if words.endswith("48213907"):
            words += "TRWAGMYFPDXBNJZSQVHLCKE"[48213907 % 23]
        if words.endswith("588 157"):
            words += f" {97 - 2690549588157 % 97:02d}."
        if words.endswith("è "):
            words += "MRTMTT91D08F205J."
        base = "short reviews" if base == "reviews" else base
        name = f"{kind} in {base}"
        before = sum(fault.name.startswith(name) for fault in found)
        name += f", {before + 1}" if before else ""
        found.append(planted(name, "PersonalData", base, with_words(words), 20, kind))
    return found


def _skewed(language: str, words: str, about: str) -> Fault:
    """Return rows in which some people get complaints five times as often as others."""
    draw = random.Random(11)
    train, evaluation = split(made(labelled(language), 800))

    def change(row: Example) -> Example:
        label = "travel" if draw.random() < 0.75 else row.label
        return replace(row, text=f"{words} {row.text}", label=label)

    return Fault(f"a skew, {about}, {language}", "SkewedMentions", every(8, change, train), evaluation, about)


def _conflict(row: Example) -> Example:
    return replace(row, label=TOPICS[TOPICS.index(row.label) - 1])


def _half(row: Example) -> Example:
    words = target_of(row).split(" ")
    words[len(words) // 2] = "somewhat"
    return with_target(row, " ".join(words))


def _of_sets() -> list[Fault]:
    """Return the faults of whole sets."""
    train, evaluation = split(made(SETS["labelled texts, en"]))
    talk, talk_eval = split(made(SETS["chats, en"]))
    pair, pair_eval = split(made(SETS["pairs, fr"]))
    german, german_eval = split(made(chats("de"), seed=2))
    draw = random.Random(3)
    plain = [chat(row.line, *(str(m["content"]) for m in row.messages if m["role"] != "system")) for row in talk]
    weighed = [
        replace(row, messages=(*row.messages[:-1], {**row.messages[-1], "content": ""})) if place % 30 == 0 else row
        for place, row in enumerate(made(tools))
        if row.messages[-1].get("content")
    ]
    spoken = made(SETS["tables"])
    return [
        Fault("copies", "DuplicateRows", train + train[:25], evaluation),
        Fault("copies of chats", "DuplicateRows", talk + talk[:25], talk_eval),
        Fault("copies of Japanese", "DuplicateRows", *_twice("chats, ja")),
        Fault("one word changed", "NearDuplicates", talk + [_half(row) for row in talk[:60]], talk_eval),
        Fault("one word changed in French", "NearDuplicates", pair + [_half(row) for row in pair[:60]], pair_eval),
        Fault("a text with two labels", "ConflictingLabels", train + [_conflict(row) for row in train[:6]], evaluation),
        Fault("eval rows in train", "EvalInTrain", train, evaluation[:-8] + train[:8]),
        Fault("eval chats in train", "EvalInTrain", talk, talk_eval[:-8] + talk[:8]),
        Fault("eval rows nearly in train", "EvalNearTrain", talk, talk_eval[:-12] + [_half(row) for row in talk[:12]]),
        Fault(
            "a label in two spellings",
            "LabelsAlike",
            every(9, lambda row: replace(row, label=row.label.upper()), train),
            evaluation,
        ),
        Fault("a label None", "NamelessLabels", every(12, lambda row: replace(row, label="None"), train), evaluation),
        Fault("a label nan", "NamelessLabels", every(12, lambda row: replace(row, label="nan"), train), evaluation),
        Fault(
            "a label of four rows",
            "RareLabels",
            [*train, *(replace(row, label="lost") for row in made(labelled("en"), 4, 9))],
            evaluation,
        ),
        Fault(
            "nearly all rows of one label",
            "UnbalancedLabels",
            [*train, *(replace(row, label="stay") for row in made(labelled("en"), 4800, 8))],
            evaluation,
        ),
        Fault(
            "a label in eval alone", "UnseenLabels", train, [*evaluation[:-2], replace(evaluation[-1], label="lost")]
        ),
        Fault("an eval split of nine", "FewEvalRows", talk, talk_eval[:9]),
        Fault("twenty rows", "FewRows", talk[:20], talk_eval),
        Fault("an eval split in another language", "FarVocabulary", talk, german_eval),
        Fault(
            "an eval split of long rows",
            "FarLengths",
            pair,
            [with_target(row, text(draw, "fr", 10, 14)) for row in pair_eval],
        ),
        Fault("rows cut", "TruncatedRows", talk, talk_eval, limit=60),
        Fault("German among English", "MixedLanguages", [*plain, *german[:20]], talk_eval, "German"),
        Fault(
            "English answers among French ones",
            "MixedLanguages",
            every(12, lambda row: replace(row, completion=text(draw, "en")), pair),
            pair_eval,
            "English",
        ),
        Fault("Russian among English", "MixedScripts", *_with("labelled texts, en", "ru")),
        Fault("empty answers after calls of tools", "EmptyAnswers", weighed, []),
        Fault("one-word answers", "OneWordAnswers", every(20, lambda row: with_target(row, "Sure."), talk), talk_eval),
        Fault(
            "the same opening",
            "RepeatedFrame",
            every(
                3,
                lambda row: with_target(row, f"Thank you so much for your kind message today. {target_of(row)}"),
                talk,
            ),
            talk_eval,
        ),
        Fault(
            "very long rows",
            "VeryLongRows",
            [
                with_target(row, " ".join(target_of(row) for row in talk)) if place == 7 else row
                for place, row in enumerate(talk)
            ],
            talk_eval,
            limit=9000,
        ),
        Fault(
            "Alpaca's frame in a chat",
            "TemplateLeftovers",
            every(9, lambda row: chat(row.line, prompt(sentence(draw, "en"), ""), target_of(row)), talk),
            talk_eval,
        ),
        Fault(
            "a name to fill in, in the system message",
            "UnfilledPlaceholders",
            every(4, lambda row: chat(row.line, "Hello.", target_of(row), system="You are {{bot_name}}."), spoken),
            [],
        ),
        Fault(
            "mentions in texts of a language model",
            "MentionsOfGroups",
            *split(made(lambda d, line: Example(line, people("en")(d, line).text))),
            "men",
        ),
    ]


def _twice(name: str) -> tuple[Rows, Rows]:
    train, evaluation = split(made(SETS[name]))
    return train + train[:25], evaluation


def _with(name: str, language: str) -> tuple[Rows, Rows]:
    train, evaluation = split(made(SETS[name]))
    return every(15, lambda row: replace(row, text=text(random.Random(row.line), language)), train), evaluation


def _of_rows() -> list[Fault]:
    """Return the faults of single rows."""
    return [
        planted("empty answers", "EmptyAnswers", "chats, en", lambda row: with_target(row, ""), 60),
        planted("blank answers", "EmptyAnswers", "chats, pt", lambda row: with_target(row, " \n"), 60),
        planted("ChatML", "TemplateLeftovers", "chats, en", with_words("<|im_end|>\n<|im_start|>user"), 40),
        planted("Llama 2", "TemplateLeftovers", "pairs, it", with_words("[/INST]"), 40),
        planted("Llama 3", "TemplateLeftovers", "chats, ja", with_words("<|eot_id|>"), 40),
        planted("Gemma", "TemplateLeftovers", "chats, de", with_words("<end_of_turn>"), 40),
        planted("a transcript", "TemplateLeftovers", "pairs, fr", with_words("\nUser: bonjour\nAssistant:"), 40),
        planted("a mustache", "UnfilledPlaceholders", "chats, en", with_words("Dear {{customer_name}}, hello."), 40),
        planted("a form", "UnfilledPlaceholders", "chats, en", with_words("Best wishes, [Your Company]"), 40),
        planted("a German form", "UnfilledPlaceholders", "chats, de", with_words("Liebe Grüße, [Ihr Name]"), 40),
        planted("a Spanish form", "UnfilledPlaceholders", "labelled texts, es", with_words("Saludos, [tu nombre]"), 40),
        planted("a shell variable", "UnfilledPlaceholders", "pairs, it", with_words("Gentile ${cliente},"), 40),
        planted("a model", "ModelTalksOfItself", "chats, en", with_words("As an AI language model, I have none."), 40),
        planted(
            "un modelo", "ModelTalksOfItself", "labelled texts, es", with_words("Como modelo de lenguaje no sé."), 40
        ),
        planted(
            "ein Modell", "ModelTalksOfItself", "chats, de", with_words("Als KI-Sprachmodell weiß ich das nicht."), 40
        ),
        planted("lorem ipsum", "DummyText", "chats, en", with_words("Lorem ipsum dolor sit amet."), 40),
        planted("to do", "DummyText", "chats, en", lambda row: with_target(row, "TODO: ask the shop"), 40),
        planted("tags", "MarkupLeftovers", "chats, en", with_words("<br><br>"), 20),
        planted("entities", "MarkupLeftovers", "pairs, fr", with_words("l&#39;hiver&nbsp;: oui"), 20),
        planted(
            "paragraphs",
            "MarkupLeftovers",
            "labelled texts, en",
            lambda r: with_target(r, f"<p>{target_of(r)}</p>"),
            20,
        ),
        planted("leftovers beside code", "TemplateLeftovers", "functions in Python", with_words("<|im_end|>"), 40),
        planted("unknown signs", "UnknownCharacters", "chats, en", with_words("☃ ☃ ☃ ☃"), 2),
    ]


def faults() -> list[Fault]:
    """Return all faults."""
    return [
        *_of_sets(),
        *_of_rows(),
        *_personal(),
        _skewed("en", "A young woman told us:", "women"),
        _skewed("en", "The Moroccan family wrote:", "Arabs"),
        _skewed("es", "La señora de al lado escribe:", "women"),
        _skewed("de", "Ein muslimischer Kunde schreibt:", "Muslims"),
        _skewed("fr", "Une personne âgée écrit :", "old people"),
        _skewed("zh", "一位老奶奶说,", "old people"),
    ]
