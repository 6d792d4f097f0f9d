"""Curves over the steps of a run, as inline SVG: the training loss, evaluations, and marks of what happened."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from finetune_trainer.pages import svg

Points = Sequence[tuple[int, float]]  # step and value, ascending

PLOT, ABOVE, BELOW = 200, 16, 26  # pixels: of the curve, and of what is above and below it
MOST_POINTS = 400  # of a line; more cannot be told apart on a screen
MOST_VALUE = 1e300  # the differences of larger ones are infinite
SPAN = 1000  # units of a line's own width


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        kind: the class of the page's style, `train` or `eval`.
        dots: whether each point is marked, and shows its value under the pointer.
    """

    kind: str
    points: Points
    dots: bool = False


def curve_chart(curves: Sequence[Curve], last_step: int, label: str, *, chosen: int = 0, stops: Points = ()) -> Markup:
    """Return a chart of curves over steps; an empty text without a point.

    Args:
        last_step: the end of the axis.
        label: what a screen reader says.
        chosen: step of the exported checkpoint, which is marked; 0 = none.
        stops: steps at which the run began again; the values are not used.
    """
    curves = [Curve(one.kind, finite_points(one.points), one.dots) for one in curves]
    values = [value for one in curves for _, value in one.points]
    if not values:
        return Markup("")
    low, high = _limits(values)
    parts = [svg.open_svg(ABOVE + PLOT + BELOW, "chart", label)]
    parts += [svg.line("grid", 0, _y(level, low, high), 100, _y(level, low, high)) for level in _grid(low, high)]
    parts.append(svg.line("base", 0, ABOVE + PLOT, 100, ABOVE + PLOT))
    parts += [svg.line("limit", _x(step, last_step), ABOVE, _x(step, last_step), ABOVE + PLOT) for step, _ in stops]
    if chosen:
        at = _x(chosen, last_step)
        parts.append(svg.line("chosen", at, ABOVE - 4, at, ABOVE + PLOT))
        parts.append(svg.label("chosen-name", at, ABOVE - 6, f"exported: step {chosen:,}", svg.anchor(at)))
    parts += [_line(one, low, high, last_step) for one in curves if len(one.points) > 1]
    for one in curves:
        for step, value in thinned(one.points) if one.dots or len(one.points) == 1 else ():
            title = f"step {step:,}: {value:.4g}"
            parts.append(svg.dot(f"point {one.kind}", _x(step, last_step), _y(value, low, high), 4, title))
    parts += [svg.label("axis", 100, _y(level, low, high) - 4, f"{level:.4g}", "end") for level in _grid(low, high)]
    parts.append(svg.label("axis", 0, ABOVE + PLOT + 18, "step 0", "start"))
    parts.append(svg.label("axis", 50, ABOVE + PLOT + 18, f"{last_step / 2:,.0f}", "middle"))
    parts.append(svg.label("axis", 100, ABOVE + PLOT + 18, f"{last_step:,}", "end"))
    return Markup("").join([*parts, svg.END])


def finite_points(points: Points) -> Points:
    """Return the points whose value can be drawn."""
    return [(step, value) for step, value in points if abs(value) < MOST_VALUE]  # NaN is not


def thinned(points: Points) -> Points:
    """Return at most `MOST_POINTS` points: the means of equal numbers of neighbours, and the last point as it is."""
    every = math.ceil(len(points) / MOST_POINTS)
    if every <= 1:
        return points
    parts = [points[start : start + every] for start in range(0, len(points), every)]
    means = [(part[len(part) // 2][0], sum(value for _, value in part) / len(part)) for part in parts]
    return [*means[:-1], points[-1]]


def _line(curve: Curve, low: float, high: float, last_step: int) -> Markup:
    """Return a line that is stretched to the width of the chart; its stroke is not stretched."""
    places = " ".join(
        f"{SPAN * _x(step, last_step) / 100:.1f},{_y(value, low, high):.1f}" for step, value in thinned(curve.points)
    )
    frame = '<svg width="100%" height="{0}" viewBox="0 0 {1} {0}" preserveAspectRatio="none">{2}</svg>'
    drawn = Markup('<polyline class="curve {}" points="{}"/>').format(curve.kind, places)
    return Markup(frame).format(ABOVE + PLOT + BELOW, SPAN, drawn)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis: the values with some room, and 0 if they come near it."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    near = low >= 0 and low < 0.35 * high
    return (0.0 if near else low - room), high + room


def _grid(low: float, high: float) -> list[float]:
    step = svg.round_step((high - low) / 3)
    first = math.floor(low / step) + 1
    return [step * number for number in range(first, first + 8) if low < step * number < high]


def _x(step: int, last_step: int) -> float:
    return 100 * step / max(1, last_step)


def _y(value: float, low: float, high: float) -> float:
    return ABOVE + PLOT * (1 - (value - low) / (high - low))
