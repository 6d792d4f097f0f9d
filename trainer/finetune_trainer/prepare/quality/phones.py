"""Telephone numbers, as they are dialled abroad or written at home: validated by phonenumbers.

That is Google's libphonenumber; its `lite` distribution, as no places and no carriers are asked for.
"""

import re
from functools import lru_cache

PHONE_WORD = re.compile(
    r"(?:phones?|call|tel|mobile|cell|fax|whatsapp|sms|dial|ring|reach \w+|telefon\w*|handy|mobil|ruf\w*|anruf\w*|"
    r"t[ée]l[ée]phone|appel\w*|portable|tel[ée]fono|llam\w+|m[óo]vil|celular|telefone|lig\w+|telem[óo]vel|cellulare|"
    r"chiam\w+|telefoon|bel|nummer|numer\w*|n[úu]mero|numéro|number|電話|携帯|电话|電話|手机|拨打)\W*(?:\w+\W+){0,3}$",
    re.I,
)

# language -> the countries whose telephone numbers are looked for as they are written at home
REGIONS = {
    "en": ("US", "GB"),
    "es": ("ES", "MX"),
    "fr": ("FR", "BE"),
    "de": ("DE", "AT", "CH"),
    "it": ("IT",),
    "pt": ("BR", "PT"),
    "nl": ("NL", "BE"),
    "pl": ("PL",),
    "sv": ("SE",),
    "da": ("DK",),
    "no": ("NO",),
    "fi": ("FI",),
    "cs": ("CZ",),
    "ja": ("JP",),
    "zh": ("CN",),
    "ko": ("KR",),
    "ru": ("RU",),
    "uk": ("UA",),
    "tr": ("TR",),
    "hi": ("IN",),
}

AMERICAN = re.compile(
    r"\(?[2-9]\d{2}(?:\) ?|[-. ])\d{3}[-.]\d{4}|\([2-9]\d{2}\) ?\d{3} \d{4}"
)  # 555 is reserved for fiction, and in use nevertheless
GROUPS_AT_HOME = {  # how a country parts a number that begins with no 0
    "ES": re.compile(r"[6789]\d{2} (?:\d{3} \d{3}|\d{2} \d{2} \d{2})"),
    "PT": re.compile(r"[29]\d{2} \d{3} \d{3}"),
    "BR": re.compile(r"\(?\d{2}\)? 9?\d{4}-\d{4}"),
    "IT": re.compile(r"3\d{2} \d{3} ?\d{4}"),
    "CN": re.compile(r"1\d{2}[ -]\d{4}[ -]\d{4}"),
    "RU": re.compile(r"8 ?\(?\d{3}\)? ?\d{3}-\d{2}-\d{2}"),
    "IN": re.compile(r"[6-9]\d{4} \d{5}"),
    "DK": re.compile(r"[2-9]\d(?: \d\d){3}"),
    "NO": re.compile(r"[2-9]\d(?: \d\d){3}"),
    "PL": re.compile(r"[5-8]\d{2}[ -]\d{3}[ -]\d{3}"),
    "CZ": re.compile(r"[67]\d{2} \d{3} \d{3}"),
    "TR": re.compile(r"\(?5\d{2}\)? \d{3} \d{2} \d{2}"),
}


def is_phone(number: str, before: str, languages: frozenset[str]) -> bool:
    """Return whether a number can be dialled: abroad with a plus, at home if it is written in groups or a word says so.

    Args:
        before: the text before it.
        languages: whose countries' numbers are looked for; English where none is known.
    """
    named = PHONE_WORD.search(before)
    parted = bool(re.search(r"\d[ ().\-/\u00a0]+\d", number))
    if number.startswith(("+", "(+")) or (number.startswith("00") and (parted or named)):
        return bool(_dialled("+" + re.sub(r"\D", "", number.replace("(0)", "")).removeprefix("00"), ""))
    own = [region for language in languages or {"en"} for region in REGIONS.get(language, ())]
    if "US" in own and AMERICAN.fullmatch(number):
        return True
    if number[:2] in ("0.", "0,"):
        return False
    if named or (parted and number.startswith(("0", "(0"))):
        return any(_dialled(number, region) for region in own)
    if number.startswith("0"):
        return any(_dialled(number, region) == "mobile" for region in own)
    return any(
        _dialled(number, region)
        for region in own
        if region in GROUPS_AT_HOME and GROUPS_AT_HOME[region].fullmatch(number)
    )


@lru_cache(maxsize=4096)
def _dialled(number: str, region: str) -> str:
    """Return `mobile`, or `other` for a possible number, else empty. Without a region it must be international."""
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region or None)
    except phonenumbers.NumberParseException:
        return ""
    valid = phonenumbers.is_valid_number_for_region(parsed, region) if region else phonenumbers.is_valid_number(parsed)
    if not valid:
        return ""
    return "mobile" if phonenumbers.number_type(parsed) == phonenumbers.PhoneNumberType.MOBILE else "other"
