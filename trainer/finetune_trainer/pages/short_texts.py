"""Numbers and sentences as pages show them."""

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def short(number: int) -> str:
    """Return `1,234`, `56.7 k`, `8.9 M`"""
    for size, unit in _UNITS:
        if number >= 10 * size or (number >= size and size >= 1e6):
            return f"{number / size:.3g} {unit}"
    return f"{number:,}"


def as_sentence(text: str) -> str:
    """Return a text with a capital letter, and percentages that stay on one line."""
    return (text[:1].upper() + text[1:]).replace(" %", "\N{NO-BREAK SPACE}%")


def sized(count: int) -> str:
    """Return bytes as people read them: `12 bytes`, `3.4 MB`."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:,} bytes"


def time_text(seconds: float) -> str:
    """Return a duration as people read it: `12 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def cut_to(text: str, most: int) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
