"""Charts as SVG elements. Colours are classes of style.css, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsetvm.report.html.element import Child, Element, el

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34


@dataclass(frozen=True)
class Axis:
    """One axis: values from low to high over `pixels` pixels; log: logarithmic; whole: ticks at whole numbers only."""

    low: float
    high: float
    log: bool
    title: str
    whole: bool = False

    def ticks(self) -> list[float]:
        """Round values inside the axis, few enough to be labelled."""
        if not self.log:
            step = max(_round_step((self.high - self.low) / 4), 1.0 if self.whole else 0.0)
            first = math.ceil(self.low / step - 1e-9)
            return [at * step for at in range(first, int(self.high / step + 1e-9) + 1)]
        decades = math.log10(self.high / self.low)
        factors = (1,) if decades > 3 else (1, 3) if decades > 1.2 else (1, 1.5, 2, 3, 4, 5, 7)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
        inside = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
        return inside[:: max(1, math.ceil(len(inside) / 6))]

    def share(self, value: float) -> float:
        """Where the value lies, 0 at low and 1 at high; outside values stick to the ends."""
        if self.log:
            at = math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        else:
            at = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, at))


def axis_over(values: Sequence[float], title: str, *, log: bool = False, low: float | None = None) -> Axis:
    """An axis that holds all values with some room; low: where it begins instead."""
    bottom, top = min(values, default=1.0), max(values, default=1.0)
    if log:
        bottom, top = max(bottom, 1e-9), max(top, 1e-9)
        return Axis(bottom / 1.15 if low is None else low, top * 1.15, True, title)
    begin = bottom if low is None else low
    return Axis(begin, top if top > begin else begin + 1.0, False, title)


class Plot:
    """A frame with two axes to draw on."""

    def __init__(self, x: Axis, y: Axis, width: int = 340, height: int = 220) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self._parts: list[Element] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = _LEFT + self.x.share(x) * (self.width - _LEFT - _RIGHT)
        down = self.height - _BOTTOM - self.y.share(y) * (self.height - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    def line(self, points: Sequence[tuple[float, float]], kind: str, says: str = "") -> None:
        """A line through the points; kind: its class; says: shown on hover."""
        text = " ".join(f"{across},{down}" for across, down in (self.place(*point) for point in points))
        self._parts.append(el("polyline", _title(says), points=text, class_=f"line {kind}"))

    def dots(
        self,
        points: Sequence[tuple[float, float]],
        kind: str,
        says: Callable[[int], str] | None = None,
        size: float = 3,
    ) -> None:
        """A circle at each point; says: text of the n-th on hover."""
        for at, point in enumerate(points):
            across, down = self.place(*point)
            title = _title(says(at)) if says else None
            self._parts.append(el("circle", title, cx=across, cy=down, r=size, class_=f"dot {kind}"))

    def marks(self, xs: Sequence[float], says: Callable[[int], str]) -> None:
        """A cross on the x axis at each place: trials without a time."""
        for at, x in enumerate(xs):
            across, _ = self.place(x, self.y.low)
            down, r = self.height - _BOTTOM - 4, 3
            path = f"M{across - r},{down - r}l{2 * r},{2 * r}m0,{-2 * r}l{-2 * r},{2 * r}"
            self._parts.append(el("path", _title(says(at)), d=path, class_="cross"))

    def text(self, x: float, y: float, words: str, kind: str = "note", anchor: str = "start") -> None:
        """Words at a point."""
        across, down = self.place(x, y)
        self._parts.append(el("text", words, x=across, y=down - 4, class_=kind, text_anchor=anchor))

    def element(self, label: str) -> Element:
        """The whole chart; label: what it shows, for those who cannot see it."""
        children: list[Child] = [*self._grid(), *self._parts]
        return el(
            "svg", *children, viewBox=f"0 0 {self.width} {self.height}", role="img", aria_label=label, class_="plot"
        )

    def _grid(self) -> list[Element]:
        parts = []
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        for value in self.x.ticks():
            across, _ = self.place(value, self.y.low)
            parts.append(el("line", x1=across, x2=across, y1=_TOP, y2=bottom, class_="grid"))
            parts.append(el("text", short(value), x=across, y=bottom + 13, class_="tick", text_anchor="middle"))
        for value in self.y.ticks():
            _, down = self.place(self.x.low, value)
            parts.append(el("line", x1=_LEFT, x2=right, y1=down, y2=down, class_="grid"))
            parts.append(el("text", short(value), x=_LEFT - 5, y=down + 3.5, class_="tick", text_anchor="end"))
        parts.append(
            el("text", self.x.title, x=(_LEFT + right) / 2, y=self.height - 5, class_="axis", text_anchor="middle")
        )
        middle = (_TOP + bottom) / 2
        turned = f"rotate(-90 10 {middle})"
        parts.append(el("text", self.y.title, x=10, y=middle, class_="axis", text_anchor="middle", transform=turned))
        return parts


def short(value: float) -> str:
    """A number for an axis: 1500000 -> "1.5M".

    >>> [short(v) for v in (0, 0.05, 2.0, 1500, 2e6)]
    ['0', '0.05', '2', '1.5k', '2M']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def bars(rows: Sequence[tuple[str, float, str, str]]) -> Element:
    """Horizontal bars that wrap on a narrow screen: (name, share in [0, 1], class, text behind the bar)."""
    items = [
        el(
            "div",
            el("span", name, class_="bar-name"),
            el(
                "span",
                el("span", class_=f"bar {kind}", style=f"width:{100 * max(share, 0.004):.1f}%"),
                class_="bar-room",
            ),
            el("span", text, class_="bar-value"),
            class_="bar-row",
        )
        for name, share, kind, text in rows
    ]
    return el("div", *items, class_="bars")


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= step * 0.999)


def _title(says: str) -> Element | None:
    return el("title", says) if says else None
