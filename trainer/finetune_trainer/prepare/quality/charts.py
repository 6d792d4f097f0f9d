"""Charts as inline SVG: no script, no font, nothing from elsewhere; colours come from the page's classes.

Widths are percentages and heights pixels: a chart is as wide as its column, and its letters never shrink.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from markupsafe import Markup

from finetune_trainer.pages import svg
from finetune_trainer.prepare.quality.report import Bin, Distance, LabelCount

PLOT = 190  # pixels high
BELOW = 26  # for the numbers under the axis
ABOVE = 14


def length_chart(train: Sequence[Bin], evaluation: Sequence[Bin], limit: int) -> Markup:
    """Return shares of rows by length: training rows as bars, evaluation rows as a line over them.

    Args:
        train, evaluation: with the same bins; evaluation may be empty.
        limit: tokens at which rows are cut; marked if it lies within the chart.
    """
    ours, theirs = _shares(train), _shares(evaluation)
    top = max([*ours, *theirs, 1e-9]) * 1.06
    width = 100 / len(ours)
    parts = [svg.open_svg(ABOVE + PLOT + BELOW, "chart", "rows by their length in tokens")]
    parts += [svg.line("grid", 0, _y(level, top), 100, _y(level, top)) for level in svg.levels(top)]
    parts.append(svg.line("base", 0, ABOVE + PLOT, 100, ABOVE + PLOT))
    for index, share in enumerate(ours):
        y = _y(share, top)
        parts.append(
            svg.rect("bar train", index * width + width * 0.06, y, width * 0.88, ABOVE + PLOT - y)
            if share
            else Markup("")
        )
    parts += _steps(theirs, width, top)
    parts += [svg.label("axis", 100, _y(level, top) - 4, f"{100 * level:.3g} %", "end") for level in svg.levels(top)]
    parts += _length_axis(train, width)
    last = train[-1]
    span = last.start + (train[1].start - train[0].start if len(train) > 1 else last.start or 1)
    if limit < span:
        parts.append(svg.line("limit", 100 * limit / span, ABOVE - 6, 100 * limit / span, ABOVE + PLOT))
        anchor = "end" if limit > span / 2 else "start"
        parts.append(svg.label("limit-name", 100 * limit / span, ABOVE - 3, f" maxLength {limit:,} ", anchor))
    return Markup("").join([*parts, svg.END])


def _shares(bins: Sequence[Bin]) -> list[float]:
    rows = sum(own.rows for own in bins)
    return [own.rows / rows for own in bins] if rows else []


def _y(share: float, top: float) -> float:
    return ABOVE + PLOT * (1 - share / top)


def _steps(shares: Sequence[float], width: float, top: float) -> Iterator[Markup]:
    for index, share in enumerate(shares):
        yield svg.line("step", index * width, _y(share, top), (index + 1) * width, _y(share, top))
    for index, (one, other) in enumerate(pairwise(shares), 1):
        yield svg.line("step", index * width, _y(one, top), index * width, _y(other, top))


def _length_axis(bins: Sequence[Bin], width: float) -> Iterator[Markup]:
    every = max(1, round(len(bins) / 5))
    for index in range(0, len(bins), every):
        if index * width > 90:
            break
        anchor = "start" if index == 0 else "middle"
        yield svg.label("axis", index * width, ABOVE + PLOT + 18, f"{bins[index].start:,}", anchor)
    yield svg.label("axis", 100, ABOVE + PLOT + 18, f"{bins[-1].start:,}+", "end")


def bar(share: float, kind: str, mark: float | None = None) -> Markup:
    """Return one bar of a share between 0 and 1, with a mark at the share of another split."""
    parts = [
        svg.open_svg(14, "line", ""),
        svg.rect("track", 0, 2, 100, 10),
        svg.rect(f"bar {kind}", 0, 2, 100 * share, 10),
    ]
    if mark is not None:
        parts.append(svg.line("mark", 100 * mark, 0, 100 * mark, 14))
    return Markup("").join([*parts, svg.END])


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
            svg.open_svg(46, "gauge", label),
            svg.rect("track", 0, 16, 100, 10),
            svg.rect("usual", 0, 16, usual, 10),
            svg.rect("beyond", far, 16, 100 - far, 10),
            svg.line("tick", far, 13, far, 29),
            svg.dot(f"dot {state}", at, 21),
            svg.label("axis", 0, 42, "usual", "start"),
            svg.label("axis", far, 42, "far", "middle" if far < 94 else "end"),
            svg.label(f"value {state}", at, 10, f"{distance.value:.3f}", svg.anchor(at)),
            svg.END,
        ]
    )


def stack(labels: Sequence[LabelCount], order: Sequence[str]) -> Markup:
    """Return how rows are spread over labels: one bar in parts, in the order and colours of `order`, the rest grey."""
    rows = {label.name: label.rows for label in labels}
    whole = max(1, sum(rows.values()))
    parts, at = [svg.open_svg(14, "line", "")], 0.0
    for index, name in enumerate([*order, None]):
        own = rows.get(name, 0) if name is not None else whole - sum(rows.get(name, 0) for name in order)
        width = 100 * own / whole
        if width:
            kind = f"part part-{index}" if name is not None else "part part-rest"
            parts.append(svg.rect(kind, at, 1, max(0.2, width - 0.3), 12, "" if name is None else f"{name}: {own:,}"))
        at += width
    return Markup("").join([*parts, svg.END])
