"""The API pages, written from the package itself before each build, and links to what they document.

A page holds a module's docstring and its ``__all__``. A name that ``genmatch`` itself offers is documented as
``genmatch.Name``, every other as ``genmatch.module.Name``, whatever file defines it. A public module that is in no
group below is a warning, and so an error of the build.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

from docutils import nodes
from sphinx import addnodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import get_node_source, make_refnode

import genmatch

LOGGER = logging.getLogger(__name__)

GROUPS = {
    "The path": ("schedules", "paths", "couplings", "spaces"),
    "The generator": ("triplet", "rates", "generators", "diffusivity", "predict", "guidance"),
    "Training": ("losses", "times", "weights", "divergences", "training", "nn", "data"),
    "Sampling": ("sampling", "solvers", "grids", "likelihood", "transitions", "editing", "random", "brownian"),
    "Measuring": ("metrics", "viz", "worlds", "testing", "interop", "kernels"),
}
TITLES = {
    "brownian": "Brownian paths",
    "grids": "Time grids",
    "nn": "Networks",
    "predict": "Predictors",
    "random": "Random numbers",
    "transitions": "Transition probabilities",
    "times": "Training times",
    "viz": "Pictures",
    "weights": "Loss weights",
}
# Other projects' modules whose names are used in annotations and docstrings as they are, and which are not linked.
ELSEWHERE = ("builtins", "typing", "collections.abc", "os", "pathlib", "types", "numpy", "scipy", "torch", "torch.nn")
ELSEWHERE += ("matplotlib.axes", "matplotlib.figure")


def documented() -> dict[str, list[str]]:
    """Module -> the full names on its page, in the order of the module's ``__all__``."""
    modules = dict.fromkeys([*genmatch._MODULES, *genmatch._NAMES.values()])
    grouped = [module for group in GROUPS.values() for module in group]
    for module in sorted(set(modules) - set(grouped)):
        LOGGER.warning("genmatch.%s is in no group of docs/_extensions/api_pages.py", module)
    pages = {}
    for unit in (unit for unit in grouped if unit in modules):
        spec = importlib.util.find_spec(f"genmatch.{unit}")
        if spec is None or spec.origin is None:
            LOGGER.info("no page for genmatch.%s: there is no such module", unit)
            continue
        names = public_names(importlib.import_module(f"genmatch.{unit}"))
        pages[unit] = [f"genmatch.{'' if genmatch._NAMES.get(n) == unit else f'{unit}.'}{n}" for n in names]
    return pages


def public_names(module: ModuleType) -> list[str]:
    """``__all__``, with the names of a module that is in it in its place."""
    names: list[str] = []
    for name in module.__all__:
        value = getattr(module, name)
        names += [f"{name}.{inner}" for inner in public_names(value)] if inspect.ismodule(value) else [name]
    return names


def find(full_name: str) -> object:
    """The object of a dotted name, or None; modules are imported and genmatch's lazy names loaded on the way."""
    value: object = None
    parts = full_name.split(".")
    for i, part in enumerate(parts):
        try:
            value = getattr(value, part) if i else importlib.import_module(part)
        except (AttributeError, ImportError):
            try:
                value = importlib.import_module(".".join(parts[: i + 1]))
            except ImportError:
                return None
    return value


def summary(value: object) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def directive(full_name: str) -> str:
    value = find(full_name)
    kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
    bases = kind == "class" and value.__bases__ != (object,)
    return f".. auto{kind}:: {full_name}\n" + ("   :show-inheritance:\n" if bases else "")


def page(unit: str, names: list[str]) -> str:
    title = TITLES.get(unit, unit.capitalize())
    head = f"{title}\n{'=' * len(title)}\n\n.. automodule:: genmatch.{unit}\n   :no-members:\n"
    return "\n".join([head, *map(directive, names)])


def contents(pages: dict[str, list[str]]) -> str:
    """The index: for each group its modules, each with its summary and its names."""
    lines: list[str] = []
    for group, units in GROUPS.items():
        present = [unit for unit in units if unit in pages]
        if not present:
            continue
        lines += [group, "-" * len(group), "", ".. toctree::", "   :hidden:", ""]
        lines += [*(f"   generated/{unit}" for unit in present), ""]
        for unit in present:
            module = importlib.import_module(f"genmatch.{unit}")
            lines += [f":doc:`generated/{unit}`", f"   {summary(module)}.", ""]
            links = (f":py:obj:`{name.removeprefix('genmatch.')} <{name}>`" for name in pages[unit])
            lines += [f"   {', '.join(links)}", ""]
    return "\n".join(lines)


def write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    pages = documented()
    texts = {f"{unit}.rst": page(unit, names) for unit, names in pages.items()}
    texts["contents.txt"] = contents(pages)
    for stale in set(folder.iterdir()) - {folder / name for name in texts}:
        stale.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    app.genmatch_names = {id(find(name)): name for names in pages.values() for name in names}  # type: ignore[attr-defined]


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """A link for a name under another than its documented one; plain text for names of other projects."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    if not all(part.isidentifier() for part in target.split(".")):
        return content  # words of a numpy-style type, such as "Tensor of shape"
    value = next((v for v in map(find, candidates(target, node)) if v is not None), None)
    if value is None:
        return content if target.split(".")[0] in {module.split(".")[0] for module in ELSEWHERE} else None
    name = app.genmatch_names.get(id(value))  # type: ignore[attr-defined]
    if name is None:
        return content  # it exists, and is not part of the API
    found = env.domains.python_domain.objects[name]
    return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, name)


def candidates(target: str, node: pending_xref) -> list[str]:
    """Full names that a reference may mean, the nearest first."""
    # Docstrings name what is around them in their own file, which is not the module they are documented under.
    where = (get_node_source(node) or "").partition("docstring of ")[2]
    around = where.split(".") if where else []
    names = [".".join([*around[:depth], target]) for depth in range(len(around), 0, -1)]
    units = dict.fromkeys([*genmatch._NAMES.values(), *genmatch._MODULES])
    names += [f"genmatch.{target}", *(f"genmatch.{unit}.{target}" for unit in units)]
    names += [target, *(f"{module}.{target}" for module in ELSEWHERE)]
    return names


def drop_constructor_return(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Take "-> None" off the signature of a class: it is that of its constructor."""
    if domain == "py" and kind == "class" and content.parent is not None:
        own = content.parent.next_node(addnodes.desc_signature)  # the first; the others are its members'
        for returns in list(own.findall(addnodes.desc_returns)) if own else ():
            own.remove(returns)


def drop_type_docstring(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """A constant without words of its own shows those of its type: ``dict(iterable) -> new dictionary ...``."""
    if kind == "data" and "\n".join(lines).split() == (inspect.getdoc(type(value)) or "").split():
        lines.clear()


def number_references(app: Sphinx, kind: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Give the references [1], [2], ... of each docstring labels of their own: a page holds many docstrings."""
    text = "\n".join(lines)
    for label in re.findall(r"^ *\.\. \[(\d+)\]", text, flags=re.MULTILINE):
        unique = f"#{name.replace('.', '-').lower()}-{label}"
        text = text.replace(f".. [{label}]", f".. [{unique}]").replace(f"[{label}]_", f"[{unique}]_")
    lines[:] = text.split("\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", drop_type_docstring, priority=100)
    app.connect("autodoc-process-docstring", number_references, priority=900)  # after napoleon
    app.connect("object-description-transform", drop_constructor_return)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
