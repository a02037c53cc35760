"""How methods look in every figure, and how figures become files. matplotlib is imported when first needed.

The colours are Okabe and Ito's, which colour-blind readers tell apart. No two methods share both marker
and line style, so that a grey print can be read as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.files import make_folder, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#C8C8C8"

Line = str | tuple[int, tuple[float, ...]]
_DASHDOTDOT = (0, (4.0, 1.2, 1.0, 1.2, 1.0, 1.2))
_LOOSE = (0, (6.0, 2.5))


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
    "dense": Style("dense", "#404040", "", (0, (5.0, 3.0))),
}


def style(method: str) -> Style:
    """The style of a method; one that has none of its own is black."""
    return STYLES.get(method, Style(method, BLACK, ".", _LOOSE))


def require_matplotlib() -> None:
    """Make sure that figures can be drawn.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'dctps[figures]'")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, laid out so that nothing overlaps; it needs no display.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)

    return Figure(figsize=(width, height), layout="constrained")


def image(figure: Figure, kind: str, dpi: int = 200) -> bytes:
    """The content of a file of the figure.

    Args:
        figure: from `new_figure`.
        kind: `"png"`, `"pdf"`, `"svg"`.
        dpi: pixels per inch.
    """
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
    """Write STEM.csv, and STEM.png and STEM.pdf of a figure, into the folder `out`.

    Returns:
        The files.
    """
    content = {"csv": to_csv(rows)}
    if figure is not None:
        content |= {kind: image(figure, kind) for kind in ("png", "pdf")}
    make_folder(out)
    files = []
    for kind, data in content.items():
        files.append(out / f"{stem}.{kind}")
        write_atomically(files[-1], data)
    return files
