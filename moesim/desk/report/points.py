"""Points in a plane: axes that fit them, names that do not cover each other, and those that none beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from matplotlib.axes import Axes

from moesim.desk.report import style
from moesim.desk.words import SHARES, label

MOST_LETTERS = 24


def short(name: str, letters: int = MOST_LETTERS) -> str:
    """Return a name that fits beside a chart.

    Examples
    --------
    >>> short("eplb"), short("placement={kind: eplb, redundant: 8}")
    ('eplb', 'placement={kind: eplb, …')
    """
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def scaled(area: Axes, ends: Iterable[float], name: str, unit: str, *, upright: bool, title: str = "") -> None:
    """Set the limits of one axis to hold some numbers, and label it.

    Parameters
    ----------
    area : Axes
    ends : iterable of float
        All values with the ends of their intervals, in SI units.
    name, unit : str
        Of the metric on this axis; a share is written in per cent.
    upright : bool
        Whether it is the vertical axis.
    title : str
        What to call it instead of the metric's label.
    """
    known = list(ends)
    low, high = min(known), max(known)
    room = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    (area.set_ylim if upright else area.set_xlim)(low, high)
    said = title or label(name)
    if name in SHARES and unit == "":
        places = [place / 100 for place in style.multiples(100 * low, 100 * high, 5) if place >= 0]
        labels = [f"{100 * place:g} %" for place in places]
    elif unit in {"s", "B"}:
        places, labels, shown = style.scale(high, unit, 5, low=low)
        said = f"{said}, {shown}"
    else:
        places = style.multiples(low, high, 5)
        labels, said = [f"{place:g}" for place in places], f"{said}, {unit}" if unit else said
    if upright:
        style.upward(area, places, labels, title=said, grid=True, gap=58)
    else:
        style.across(area, places, labels, title=said, grid=True)


def front(points: list[tuple[float, float]], better: str) -> list[tuple[float, float]]:
    """Return the points that no other beats in both, from left to right; less of the first is always better."""
    sign = 1 if better == "lower" else -1
    found: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], sign * point[1])):
        if not found or sign * y < sign * found[-1][1]:
            found.append((x, y))
    return found


def named(area: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the names of points beside them, moved up or down where they would cover each other."""
    to_pixels = area.transData
    taken: list[tuple[float, float, float, float]] = []
    scale = 72 / style.DPI
    dots = [tuple(to_pixels.transform(point)) for point in points.values()]
    for name, point in points.items():
        x, y = to_pixels.transform(point)
        text = short(name, 26)
        wide = 6.6 * len(text)
        for shift in (9.0, -9.0, 22.0, -22.0, 35.0, -35.0, 48.0, -48.0, 61.0, -61.0):
            box = (x + 9, y + shift - 6.5, x + 9 + wide, y + shift + 6.5)
            clear = all(box[2] < other[0] or box[0] > other[2] or box[3] <= other[1] or box[1] >= other[3] for other in taken)
            clear = clear and not any(box[0] - 5 < at[0] < box[2] and box[1] - 4 < at[1] < box[3] + 4 for at in dots)
            if clear:
                break
        taken.append(box)
        area.annotate(
            text, point, xytext=(9 * scale, shift * scale), textcoords="offset points", va="center", fontsize=11, color=style.INK, zorder=4,
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.8, "shrinkB": 4} if abs(shift) > 10 else None,
        )  # fmt: skip
