"""A page of HTML that is one file: text is escaped, nothing is fetched, and one script runs.

The script sorts tables and shows the values of charts; the page is whole without it.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Collection, Sequence
from pathlib import Path

_FILES = Path(__file__).parent / "page_files"
_STYLE, _SCRIPT = ((_FILES / name).read_text().strip() for name in ("page.css", "page.js"))
# The browser itself refuses whatever is not in the file, and every script but that of this module.
_ALLOWED = base64.b64encode(hashlib.sha256(f"\n{_SCRIPT}\n".encode()).digest()).decode()
_POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_ALLOWED}'"


def text(value: object) -> str:
    """Anything as the text of an element."""
    return html.escape(str(value))


def lacking(value: object) -> str:
    """As text, marked as what should be there and is not."""
    return f'<span class="lacking">{text(value)}</span>'


def heading(value: object, level: int = 2) -> str:
    """A heading; level 1 is the page's title."""
    return f"<h{level}>{text(value)}</h{level}>"


def paragraph(value: object) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(value)}</p>"


def table(
    header: Sequence[object],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[int] = (),
    wide: Collection[int] = (),
) -> str:
    """A table, which scrolls by itself where it is wider than the page.

    The header is plain text, the cells are HTML from `text` or `lacking`. `numbers` are the columns that end
    flush, `wide` those of prose.
    """
    kinds = dict.fromkeys(numbers, ' class="number"') | dict.fromkeys(wide, ' class="wide"')
    head = "".join(f'<th scope="col"{kinds.get(i, "")}>{text(cell)}</th>' for i, cell in enumerate(header))
    lines = [
        "<tr>" + "".join(f"<td{kinds.get(i, '')}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    head = f"<thead><tr>{head}</tr></thead>"
    return f'<div class="scroll"><table>\n{head}\n<tbody>\n{body}\n</tbody></table></div>'


def charts(figures: Sequence[str]) -> str:
    """Charts of `dctps.analysis.chart`, beside each other where the page is wide enough."""
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page: a title of plain text, and the parts of its body from the functions above."""
    body = "\n".join([heading(title, 1), *parts])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
{body}
<script>
{_SCRIPT}
</script>
</body>
</html>
"""
