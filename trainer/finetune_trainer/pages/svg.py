"""Parts of charts as inline SVG: no script, no font, nothing from elsewhere; colours come from the page's classes.

Widths are percentages and heights pixels: a chart is as wide as its column, and its letters never shrink.
"""

from markupsafe import Markup

TICKS = (1, 2, 2.5, 5, 10)
END = Markup("</svg>")


def open_svg(height: int, kind: str, spoken: str) -> Markup:
    """Return the start of a chart.

    Args:
        height: in pixels.
        kind: the class of the page's style.
        spoken: what a screen reader says; empty for a decoration.
    """
    label_text = Markup(' role="img" aria-label="{}"').format(spoken) if spoken else Markup(' aria-hidden="true"')
    return Markup('<svg class="{}" width="100%" height="{}"{}>').format(kind, height, label_text)


def rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    """Return a rectangle with rounded corners; `title` is shown under the pointer."""
    tooltip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect class="{}" x="{}%" y="{}" width="{}%" height="{}" rx="2">{}</rect>').format(
        kind, f"{x:.2f}", f"{y:.1f}", f"{max(0.0, width):.2f}", f"{height:.1f}", tooltip
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """Return a straight line."""
    return Markup('<line class="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(
        kind, f"{x1:.2f}", f"{y1:.1f}", f"{x2:.2f}", f"{y2:.1f}"
    )


def dot(kind: str, x: float, y: float, radius: float = 6.5, title: str = "") -> Markup:
    """Return a circle; `title` is shown under the pointer."""
    place = Markup('<circle class="{}" cx="{}%" cy="{}" r="{}"').format(kind, f"{x:.2f}", f"{y:.1f}", f"{radius:g}")
    return place + (Markup("><title>{}</title></circle>").format(title) if title else Markup("/>"))


def label(kind: str, x: float, y: float, words: str, anchor: str) -> Markup:
    """Return a text; `anchor` is `start`, `middle` or `end`."""
    return Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
        kind, f"{x:.2f}", f"{y:.1f}", anchor, words
    )


def anchor(at: float) -> str:
    """Return the anchor of a text at this percentage of the width, so that it stays within the chart."""
    return "start" if at < 8 else "end" if at > 92 else "middle"


def levels(top: float) -> list[float]:
    """Return about three round values between 0 and `top`, for the lines of a grid."""
    step = round_step(top / 3)
    return [step * number for number in range(1, int(top / step) + 1) if step * number < top]


def round_step(about: float) -> float:
    """Return the round number that is nearest to a positive number."""
    power = 1.0
    while power * 10 <= about:
        power *= 10
    while power > about:
        power /= 10
    return min((power * tick for tick in TICKS), key=lambda step: abs(step - about))
