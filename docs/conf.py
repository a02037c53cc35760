import contextlib
import importlib.metadata
import io
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

from dctps.cli.program import _KINDS, main
from dctps.files import write_atomically

project = "dctps"
author = "the dctps authors"
release = version = importlib.metadata.version("dctps")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_preserve_defaults = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dctps"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["dctps.css"]
suppress_warnings = ["myst.header"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"torch\..*")]  # torch's own pages are on the network


def write_flags(app):
    """`flags.md`: the help of every command, by the program itself."""
    parts = ["# Every flag", "", "What `dctps COMMAND --help` prints."]
    for name in _KINDS:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([name, "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue()).rstrip()
        parts += ["", f"## dctps {name}", "", "```text", text, "```"]
    write_atomically(Path(app.srcdir) / "flags.md", ("\n".join(parts) + "\n").encode())


def setup(app):
    """Shapes such as (*, n) and (m, *rest) are no emphasis; formulas are MathML, which needs no network."""

    def escape_shapes(app, what, name, thing, options, lines):
        lines[:] = [re.sub(r"(?<=[ (])\*(?=[\w,])", r"\\*", line) for line in lines]

    app.connect("builder-inited", write_flags)
    app.connect("autodoc-process-docstring", escape_shapes)
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(display, None))


def inline(writer, node):
    """A formula within a line."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(writer, node):
    """A formula on a line of its own."""
    writer.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode
