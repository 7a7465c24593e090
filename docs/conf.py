"""Sphinx configuration. The build needs no network: equations become MathML, references stay inside the project."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import genmatch

project = "genmatch"
author = "The genmatch developers"
project_copyright = f"2026, {author}"
release = version = genmatch.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",
    "mathml",
    "api_pages",
]
exclude_patterns = ["_build", "_extensions"]
nitpicky = True

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what a subclass has to write is documented once, in its base class
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_google_docstring = False
napoleon_use_rtype = False
typehints_defaults = "comma"
typehints_document_rtype = False  # the signature says it
typehints_use_signature_return = True
suppress_warnings = [
    # Names that only a type checker needs are imported under TYPE_CHECKING, which autodoc does not run.
    "sphinx_autodoc_typehints.guarded_import",
    "sphinx_autodoc_typehints.forward_reference",
    "ref.footnote",  # a list of references in numpy style need not be cited number by number
]
warnings.filterwarnings("ignore", message=".*set_application", module="sphinx_autodoc_typehints")

html_theme = "furo"
html_title = "genmatch"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["genmatch.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#20508f", "color-brand-content": "#20508f"},
    "dark_css_variables": {"color-brand-primary": "#8ab4f0", "color-brand-content": "#8ab4f0"},
}
