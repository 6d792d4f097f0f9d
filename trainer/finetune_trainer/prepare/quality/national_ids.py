"""Numbers that one state gives to each of its people: validated by python-stdnum.

A number whose check digit one in ten random ones passes counts only beside a word that says what it is.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

BEFORE = 40  # characters in which a word says what a number is


@dataclass(frozen=True)
class Id:
    """A number of persons.

    Attributes:
        module: of python-stdnum, whose `is_valid` decides; empty where the form has no check digit.
        languages: in which it is looked for.
        form: how it is written.
        word: required before it, where its check digit alone proves little; None where form and check digit suffice.
    """

    module: str
    languages: str
    form: re.Pattern[str]
    word: re.Pattern[str] | None = None


def _id(module: str, languages: str, form: str, word: str = "") -> Id:
    return Id(
        module,
        languages,
        re.compile(rf"(?<![\w.,/#-]){form}(?![\w-]|[.,/]\d)"),
        re.compile(word, re.I) if word else None,
    )


IDS = (
    _id("us.ssn", "en es", r"\d{3}-\d{2}-\d{4}"),
    _id("us.ssn", "en es", r"\d{9}|\d{3} \d{2} \d{4}", r"\bssn\b|social security"),
    _id("us.itin", "en es", r"9\d{2}-\d{2}-\d{4}"),
    _id("gb.nhs", "en", r"\d{3} ?\d{3} ?\d{4}", r"\bnhs\b"),
    _id("", "en", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d{2} \d{2} \d{2} [A-D]"),  # national insurance number
    _id("", "en", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]", r"national insurance|\bnino?\b"),
    _id("ca.sin", "en fr", r"\d{3}[ -]?\d{3}[ -]?\d{3}", r"\bsin\b|\bnas\b|social insurance"),
    _id("au.tfn", "en", r"\d{3} ?\d{3} ?\d{3}", r"tax file|\btfn\b"),
    _id("in_.aadhaar", "en hi bn ta", r"\d{4} \d{4} \d{4}"),
    _id("in_.pan", "en hi", r"[A-Z]{5}\d{4}[A-Z]"),
    _id("es.dni", "es ca", r"\d{8}[- ]?[A-Z]"),
    _id("es.nie", "es ca", r"[XYZ][- ]?\d{7}[- ]?[A-Z]"),
    _id("mx.curp", "es", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z\d]\d"),
    _id("fr.nir", "fr", r"[12] ?\d{2} ?(?:0\d|1[0-2]|[2-9]\d) ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}"),
    _id("de.idnr", "de", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", r"steuer|identifikation|idnr|\bid\b"),
    _id("it.codicefiscale", "it", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"),
    _id("pt.nif", "pt", r"\d{3} ?\d{3} ?\d{3}", r"\bnif\b|contribuinte"),
    _id("br.cpf", "pt", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _id("br.cpf", "pt", r"\d{11}", r"\bcpf\b"),
    _id("nl.bsn", "nl", r"\d{9}|\d{4}\.\d{2}\.\d{3}", r"\bbsn\b|burgerservice|sofi"),
    _id("be.nn", "nl fr de", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    _id("pl.pesel", "pl", r"\d{11}", r"pesel"),
    _id("se.personnummer", "sv", r"(?:\d{2})?\d{6}[-+]\d{4}"),
    _id("dk.cpr", "da", r"\d{6}-\d{4}"),
    _id("no.fodselsnummer", "no", r"\d{6} ?\d{5}"),
    _id("fi.hetu", "fi", r"\d{6}[-+A]\d{3}[\dA-Z]"),
    _id("cz.rc", "cs sk", r"\d{6}/\d{3,4}"),
    _id("ch.ssn", "de fr it", r"756\.\d{4}\.\d{4}\.\d{2}"),
    _id("tr.tckimlik", "tr", r"\d{11}", r"kimlik|\btc\b"),
    _id("cn.ric", "zh", r"\d{17}[\dX]"),
    _id("kr.rrn", "ko", r"\d{6}-\d{7}"),
    _id("ro.cnp", "ro", r"[1-8]\d{12}", r"cnp"),
    _id("bg.egn", "bg", r"\d{10}", r"егн"),
    _id("za.idnr", "en", r"\d{13}", r"identity number|\bid\b"),
)


def national_ids(text: str, languages: frozenset[str]) -> Iterator[re.Match[str]]:
    """Return the numbers of persons in a text; of every country where no language is known."""
    for own in IDS:
        if languages and not languages & set(own.languages.split()):
            continue
        for match in own.form.finditer(text):
            before = text[max(0, match.start() - BEFORE) : match.start()]
            if (own.word is None or own.word.search(before)) and _valid(own.module)(match.group()):
                yield match


@cache
def _valid(module: str) -> Callable[[str], bool]:
    if not module:
        return lambda number: True
    check: Callable[[str], bool] = import_module(f"stdnum.{module}").is_valid
    return check
