"""Charts as inline SVG: no script, no font, nothing from elsewhere; colours come from the page's classes.

Widths are percentages and heights pixels: a chart is as wide as its column, and its letters never shrink.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from finetune_trainer.prepare.quality.report import Bin, Distance, LabelCount

PLOT = 190  # pixels high
BELOW = 26  # for the numbers under the axis
ABOVE = 14
TICKS = (1, 2, 2.5, 5, 10)
_END = Markup("</svg>")


def length_chart(train: Sequence[Bin], evaluation: Sequence[Bin], limit: int) -> Markup:
    """Return shares of rows by length: training rows as bars, evaluation rows as a line over them.

    Args:
        train, evaluation: with the same bins; evaluation may be empty.
        limit: tokens at which rows are cut; marked if it lies within the chart.
    """
    ours, theirs = _shares(train), _shares(evaluation)
    top = max([*ours, *theirs, 1e-9]) * 1.06
    width = 100 / len(ours)
    parts = [_open(ABOVE + PLOT + BELOW, "chart", "rows by their length in tokens")]
    parts += [_line("grid", 0, _y(level, top), 100, _y(level, top)) for level in _levels(top)]
    parts.append(_line("base", 0, ABOVE + PLOT, 100, ABOVE + PLOT))
    for index, share in enumerate(ours):
        y = _y(share, top)
        parts.append(
            _rect("bar train", index * width + width * 0.06, y, width * 0.88, ABOVE + PLOT - y) if share else Markup("")
        )
    parts += _steps(theirs, width, top)
    parts += [_text("axis", 100, _y(level, top) - 4, f"{100 * level:.3g} %", "end") for level in _levels(top)]
    parts += _length_axis(train, width)
    last = train[-1]
    span = last.start + (train[1].start - train[0].start if len(train) > 1 else last.start or 1)
    if limit < span:
        parts.append(_line("limit", 100 * limit / span, ABOVE - 6, 100 * limit / span, ABOVE + PLOT))
        anchor = "end" if limit > span / 2 else "start"
        parts.append(_text("limit-name", 100 * limit / span, ABOVE - 3, f" maxLength {limit:,} ", anchor))
    return Markup("").join([*parts, _END])


def _shares(bins: Sequence[Bin]) -> list[float]:
    rows = sum(own.rows for own in bins)
    return [own.rows / rows for own in bins] if rows else []


def _y(share: float, top: float) -> float:
    return ABOVE + PLOT * (1 - share / top)


def _levels(top: float) -> list[float]:
    step = _round_step(top / 3)
    return [step * number for number in range(1, int(top / step) + 1) if step * number < top]


def _round_step(about: float) -> float:
    power = 1.0
    while power * 10 <= about:
        power *= 10
    while power > about:
        power /= 10
    return min((power * tick for tick in TICKS), key=lambda step: abs(step - about))


def _steps(shares: Sequence[float], width: float, top: float) -> Iterator[Markup]:
    for index, share in enumerate(shares):
        yield _line("step", index * width, _y(share, top), (index + 1) * width, _y(share, top))
    for index, (one, other) in enumerate(pairwise(shares), 1):
        yield _line("step", index * width, _y(one, top), index * width, _y(other, top))


def _length_axis(bins: Sequence[Bin], width: float) -> Iterator[Markup]:
    every = max(1, round(len(bins) / 5))
    for index in range(0, len(bins), every):
        if index * width > 90:
            break
        anchor = "start" if index == 0 else "middle"
        yield _text("axis", index * width, ABOVE + PLOT + 18, f"{bins[index].start:,}", anchor)
    yield _text("axis", 100, ABOVE + PLOT + 18, f"{bins[-1].start:,}+", "end")


def bar(share: float, kind: str, mark: float | None = None) -> Markup:
    """Return one bar of a share between 0 and 1, with a mark at the share of another split."""
    parts = [_open(14, "line", ""), _rect("track", 0, 2, 100, 10), _rect(f"bar {kind}", 0, 2, 100 * share, 10)]
    if mark is not None:
        parts.append(_line("mark", 100 * mark, 0, 100 * mark, 14))
    return Markup("").join([*parts, _END])


def distance_chart(distance: Distance) -> Markup:
    """Return a chart of a distance: usual, beyond that, or far."""
    top = min(1.0, max(distance.far * 1.5, distance.value * 1.15, 1e-9))
    at, usual, far = (100 * min(1.0, value / top) for value in (distance.value, distance.usual, distance.far))
    state = "far" if distance.is_far else "near"
    label = (
        f"{distance.value:.3f} between train and eval; random splits stay below {distance.usual:.3f}, "
        f"far begins at {distance.far:.3f}"
    )
    return Markup("").join(
        [
            _open(46, "gauge", label),
            _rect("track", 0, 16, 100, 10),
            _rect("usual", 0, 16, usual, 10),
            _rect("beyond", far, 16, 100 - far, 10),
            _line("tick", far, 13, far, 29),
            _dot(f"dot {state}", at, 21),
            _text("axis", 0, 42, "usual", "start"),
            _text("axis", far, 42, "far", "middle" if far < 94 else "end"),
            _text(f"value {state}", at, 10, f"{distance.value:.3f}", _anchor(at)),
            _END,
        ]
    )


def _anchor(at: float) -> str:
    return "start" if at < 8 else "end" if at > 92 else "middle"


def stack(labels: Sequence[LabelCount], order: Sequence[str]) -> Markup:
    """Return how rows are spread over labels: one bar in parts, in the order and colours of `order`, the rest grey."""
    rows = {label.name: label.rows for label in labels}
    whole = max(1, sum(rows.values()))
    parts, at = [_open(14, "line", "")], 0.0
    for index, name in enumerate([*order, None]):
        own = rows.get(name, 0) if name is not None else whole - sum(rows.get(name, 0) for name in order)
        width = 100 * own / whole
        if width:
            kind = f"part part-{index}" if name is not None else "part part-rest"
            parts.append(_rect(kind, at, 1, max(0.2, width - 0.3), 12, "" if name is None else f"{name}: {own:,}"))
        at += width
    return Markup("").join([*parts, _END])


def _open(height: int, kind: str, label: str) -> Markup:
    label_text = Markup(' role="img" aria-label="{}"').format(label) if label else Markup(' aria-hidden="true"')
    return Markup('<svg class="{}" width="100%" height="{}"{}>').format(kind, height, label_text)


def _rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    tooltip = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect class="{}" x="{}%" y="{}" width="{}%" height="{}" rx="2">{}</rect>').format(
        kind, f"{x:.2f}", f"{y:.1f}", f"{max(0.0, width):.2f}", f"{height:.1f}", tooltip
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}%" y1="{}" x2="{}%" y2="{}"/>').format(
        kind, f"{x1:.2f}", f"{y1:.1f}", f"{x2:.2f}", f"{y2:.1f}"
    )


def _dot(kind: str, x: float, y: float) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="6.5"/>').format(kind, f"{x:.2f}", f"{y:.1f}")


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{}%" y="{}" text-anchor="{}">{}</text>').format(
        kind, f"{x:.2f}", f"{y:.1f}", anchor, text
    )
