"""A page of HTML that is one file: text is escaped, pictures are within, and nothing is fetched or run."""

from __future__ import annotations

import base64
import html
from collections.abc import Collection, Sequence

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 76rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } h3 { font-size: 1.05rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; vertical-align: top;
  overflow-wrap: normal; }
th { border-bottom-color: #666; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.wide { min-width: 12rem; overflow-wrap: anywhere; }
.lacking { color: #a32a00; }
img { display: block; max-width: max(100%, 40rem); height: auto; margin: 1rem 0; }
""".strip()
# The browser itself refuses whatever is not in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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


def picture(png: bytes, description: str) -> str:
    """A picture in the page, which scrolls where it would become too small; `description` replaces it."""
    data = base64.b64encode(png).decode()
    image = f'<img alt="{html.escape(description)}" src="data:image/png;base64,{data}">'
    return f'<div class="scroll">{image}</div>'


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
</body>
</html>
"""
