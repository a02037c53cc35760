"""How methods look in every figure, and how figures become files. matplotlib is imported when first needed.

Every figure is as wide as the text of a page, and no letter in it is smaller than `SMALL`.

The colours are Okabe and Ito's, which colour-blind readers tell apart. No two methods share both marker
and line style, so that a grey print can be read as well.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.files import make_folder, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = 6.5  # inches
SMALL, LARGE = 8.0, 9.0  # points

_LEGEND: dict[str, Any] = {"fontsize": SMALL, "handlelength": 2.8, "columnspacing": 1.2}

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#C8C8C8"

Line = str | tuple[int, tuple[float, ...]]
_LOOSE = (0, (6.0, 2.5))
_DOTS = (0, (1.0, 1.5))


@dataclass(frozen=True)
class Style:
    """How a method is drawn and what it is called."""

    label: str
    color: str
    marker: str
    line: Line = "-"
    filled: bool = True

    def of_line(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` and `Axes.errorbar`."""
        return {
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.line,
            "label": self.label,
            "markerfacecolor": self.color if self.filled else "white",
            "markeredgecolor": self.color,
        }


STYLES: dict[str, Style] = {
    "dctps": Style("DCTpS", BLUE, "o"),
    "sdctps": Style("sDCTpS", RED, "s"),
    "dctps-rigl": Style("DCTpS + RigL", BLUE, "^", "--", filled=False),
    "sdctps-rigl": Style("sDCTpS + RigL", RED, "v", "--", filled=False),
    "hyperplane": Style("hyperplane", BLACK, "*", "-."),
    "random-uniform": Style("Random (uniform)", PURPLE, "X", ":"),
    "random-epl": Style("Random (EPL)", GREEN, "D"),
    "random-epf": Style("Random (EPF)", ORANGE, "d", "--", filled=False),
    "random-erk": Style("Random (ERK)", SKY, "P", "-."),
    "snip": Style("SNIP", ORANGE, "<"),
    "iter-snip": Style("Iter-SNIP", PURPLE, ">", "--", filled=False),
    "force": Style("FORCE", GREEN, "D", "-.", filled=False),
    "grasp": Style("GraSP", PURPLE, "p", ":"),
    "synflow": Style("SynFlow", SKY, ">"),
    "magnitude": Style("magnitude", GREEN, "x", "--"),
    "rigl": Style("RigL", PURPLE, "^"),
    "set": Style("SET", ORANGE, "v", ":", filled=False),
    "dsr": Style("DSR", GREEN, "s", "-.", filled=False),
    "imp": Style("IMP", BLACK, "+", ":"),
    "norms": Style("norms alone", "#808080", "h", (0, (1.0, 2.0))),
    "dense": Style("dense", "#404040", "", (0, (5.0, 3.0))),
}


def style(curve: str) -> Style:
    """The style of a method; one that has none of its own is black. `METHOD INIT` is a thin line of dots."""
    method, _, init = curve.partition(" ")
    own = STYLES.get(method, Style(method, BLACK, ".", _LOOSE))
    return replace(own, label=f"{own.label}, {init}", line=_DOTS, filled=not own.filled) if init else own


def in_order(methods: Iterable[str]) -> list[str]:
    """The curves as `STYLES` has their methods, the others last."""
    known = list(STYLES)

    def place(curve: str) -> tuple[int, str]:
        method, _, init = curve.partition(" ")
        return (known.index(method) if method in STYLES else len(known)), init

    return sorted(methods, key=place)


def require_matplotlib() -> None:
    """Raise a ValueError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'dctps[figures]'")


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width and `height` inches, laid out so that nothing overlaps."""
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)

    return Figure(figsize=(PAGE, height), layout="constrained")


def new_grid(
    count: int, columns: int, height: float, beside: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in lines of `columns`, each `height` inches high, and `beside` more."""
    lines = math.ceil(count / columns)
    figure = new_figure(beside + height * lines)
    grid = figure.subplots(lines, columns, squeeze=False, **shared)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def is_leftmost(axes: Axes) -> bool:
    """Whether axes stand in the first column of their grid."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def entitle(figure: Figure, title: str) -> None:
    """A title above a whole figure."""
    figure.suptitle(wrapped(title, 0.85 * PAGE), fontsize=LARGE)


def wrapped(text: str, width: float) -> str:
    """The text in lines of at most `width` inches of small letters; its own line breaks stay."""
    letters = int(72 * width / (0.55 * SMALL))
    return "\n".join(textwrap.fill(line, letters) for line in text.splitlines())


def decades(low: float, high: float) -> tuple[float, float]:
    """Powers of ten around two numbers, so that a logarithmic axis has at least two words on it."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return 10.0**first, 10.0 ** max(last, first + 1)


def dress(axes: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Give axes a grid behind the curves, a title, and labels of readable size."""
    axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)
    axes.set_title(title, fontsize=SMALL)
    axes.set_xlabel(x, fontsize=SMALL)
    axes.set_ylabel(y, fontsize=SMALL)


def say(axes: Axes, text: str, width: float) -> None:
    """Words in the middle of axes in which nothing can be drawn; `width` in inches."""
    place: Any = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, wrapped(text, width), fontsize=SMALL, **place)


def named(some: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """What some axes name: handles and labels, each label once, in the order of the methods."""
    found: dict[str, Any] = {}
    for axes in some:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    first = [look.label for look in STYLES.values()]
    labels = sorted(found, key=lambda label: first.index(label) if label in first else len(first))
    return [found[label] for label in labels], labels


def key(figure: Figure) -> None:
    """One legend below a figure, of everything that its axes name."""
    handles, labels = named(figure.axes)
    if labels:
        place: Any = "outside lower center"
        figure.legend(handles, labels, loc=place, ncols=4, **_LEGEND)


def head(axes: Axes, title: str, handles: Sequence[Any], labels: Sequence[str], columns: int = 1) -> None:
    """A title above axes, and between the two their legend."""
    legend = axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.4,
        borderpad=0, labelspacing=0.5, ncols=columns, **_LEGEND,
    )  # fmt: skip
    # The layout would narrow axes whose legend is wider than they are; the title keeps the height free.
    legend.set_in_layout(False)
    lines = math.ceil(len(labels) / columns)
    axes.set_title(title, loc="left", fontsize=SMALL, pad=1.55 * SMALL * lines + 6)


def image(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """The content of a PNG, PDF or SVG file of the figure, with so many pixels per inch."""
    content = io.BytesIO()
    # Without dates the same runs give the same bytes.
    dated: Mapping[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(content, format=kind, dpi=dpi, metadata=dated.get(kind))
    return content.getvalue()


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as CSV, the columns of the first row first; None is an empty field."""
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def save(out: Path, stem: str, rows: Sequence[Mapping[str, Any]], figure: Figure | None = None) -> list[Path]:
    """Write STEM.csv, and STEM.png and STEM.pdf of a figure, into the folder `out`; returns these files."""
    content = {"csv": to_csv(rows)}
    if figure is not None:
        content |= {kind: image(figure, kind) for kind in ("png", "pdf")}
    make_folder(out)
    files = {out / f"{stem}.{kind}": data for kind, data in content.items()}
    for file, data in files.items():
        write_atomically(file, data)
    return list(files)
