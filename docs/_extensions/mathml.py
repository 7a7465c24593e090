"""Equations as MathML, made while building: pages need no script and no network.

Browsers have drawn MathML by themselves since 2023. TeX that cannot be translated is a warning, and so an error of the
build, where a script in the page would fail before the reader.
"""

from __future__ import annotations

from html import escape

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)
CONVERTER = LatexToMathML(fancy_error=False)


def translate(node: nodes.math | nodes.math_block, *, block: bool) -> str:
    tex = node.astext().strip()
    if r"\\" in tex and r"\begin" not in tex:
        tex = rf"\begin{{aligned}} {tex} \end{{aligned}}"
    try:
        return CONVERTER.convert_with_local_state(tex, displaystyle=block)
    except LatexError as error:
        LOGGER.warning("cannot translate %r to MathML: %s", tex, error, location=node, type="mathml")
        return f"<code>{escape(tex)}</code>"


def write_inline(writer: HTML5Translator, node: nodes.math) -> None:
    writer.body.append(translate(node, block=False))
    raise nodes.SkipNode


def write_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="equation"))
    writer.body.append(translate(node, block=True))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})</span>')
    writer.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(write_inline, None), block_renderers=(write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
