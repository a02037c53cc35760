import importlib.metadata
import re

project = "dctps"
author = "the dctps authors"
release = version = importlib.metadata.version("dctps")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_preserve_defaults = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dctps"
suppress_warnings = ["myst.header", "myst.xref_missing"]


def setup(app):
    """Shapes such as (*, n) and (m, *rest) are no emphasis."""

    def escape_shapes(app, what, name, thing, options, lines):
        lines[:] = [re.sub(r"(?<=[ (])\*(?=[\w,])", r"\\*", line) for line in lines]

    app.connect("autodoc-process-docstring", escape_shapes)
