"""The rules that hold the code together, read off its syntax trees and its classes.

Each rule is a function from source text (or classes) to a list of complaints, so that it can be shown to fail.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import genmatch

ROOT = Path(genmatch.__file__).parent
SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

# Lower floors never import upper ones. The first component of a module's path stands for all that is below it.
FLOORS = (
    ("numbers", {"schedules", "diffusivity", "divergences", "grids", "quadrature"}),
    (
        "state, and what stands apart",
        {"triplet", "rates", "landings", "inversion", "random", "dyadic", "brownian", "spaces", "nn", "kernels"},
    ),
    ("paths", {"paths", "couplings"}),
    ("fields", {"predict", "generators", "guidance"}),
    (
        "learn and solve",
        {"losses", "weights", "times", "solvers", "sampling", "editing", "initial", "likelihood", "transitions"},
    ),
    ("around it", {"metrics", "viz", "data", "training", "interop", "testing", "worlds", "demo"}),
)
FLOOR = {unit: height for height, (_, units) in enumerate(FLOORS) for unit in units}
TOP = len(FLOORS) - 1


def unit_of(path: str) -> str:
    """``paths/gaussian.py`` -> ``paths``; ``schedules.py`` -> ``schedules``; the package's own file -> ``""``."""
    return "" if path == "__init__.py" else path.removesuffix(".py").split("/")[0]


# Imports


def imported_units(source: str, path: str) -> Iterator[tuple[str, int]]:
    """(unit, line) of every import of genmatch in a source, wherever it stands; ``""`` is the package itself."""
    package = ["genmatch", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.split(".")[0] == "genmatch"]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            origin = [*origin, *(node.module.split(".") if node.module else [])]
            if origin[:1] != ["genmatch"]:
                continue
            targets = [
                ".".join([*origin, alias.name]) if len(origin) == 1 else ".".join(origin) for alias in node.names
            ]
        else:
            continue
        for target in targets:
            unit = [*target.split("."), ""][1]
            unit = genmatch._NAMES.get(unit, unit)  # `from genmatch import sample` imports genmatch.sampling
            yield ("" if unit == "__version__" else unit), node.lineno


def upward_imports(source: str, path: str) -> list[str]:
    unit, complaints = unit_of(path), []
    for other, line in imported_units(source, path):
        height = FLOOR.get(other, TOP)  # `import genmatch` reaches everything
        if other != unit and height > FLOOR.get(unit, TOP):
            complaints.append(f"{path}:{line}: {unit} (floor {FLOOR[unit]}) imports {other or 'genmatch'} ({height})")
    return complaints


@pytest.mark.parametrize("path", SOURCES)
def test_imports_go_down(path: str):
    assert unit_of(path) in {"", *FLOOR}, f"{path} stands on no floor: add it to FLOORS"
    if path != "__init__.py":  # it names everything
        assert upward_imports(SOURCES[path].read_text(), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schedules.py", "from .paths import GaussianPath"),
        ("schedules.py", "from . import solvers"),
        ("schedules.py", "import genmatch.triplet"),
        ("schedules.py", "import genmatch as gm"),
        ("schedules.py", "from genmatch import sample"),
        ("schedules.py", "def late():\n    from genmatch.viz import grid"),
        ("paths/gaussian.py", "from ..predict.affine import Data"),
        ("nn/unet.py", "from ..paths import Path"),
    ],
)
def test_an_upward_import_is_seen(path: str, source: str):
    assert len(upward_imports(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("solvers/euler.py", "from ..schedules import CondOT\nfrom .plan import Plan\nimport torch"),
        ("paths/gaussian.py", "from .path import Path\nfrom .. import schedules\nfrom ..random import Draws"),
        ("viz.py", "import genmatch as gm\nfrom genmatch import __version__"),
    ],
)
def test_a_downward_import_is_not(path: str, source: str):
    assert upward_imports(source, path) == []


def test_importing_genmatch_imports_nothing_heavy():
    code = "import sys, genmatch; print(*(m for m in ('torch', 'numpy', 'scipy', 'matplotlib') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# What no source contains


def forbidden(source: str, path: str) -> list[str]:
    """Names and calls that are not allowed in the package, with their lines."""
    found: list[tuple[int, str]] = []
    tail = path.removesuffix(".py").split("/")[-1]
    if tail in {"utils", "util", "helpers", "common", "misc", "base"}:
        found.append((0, f"a module called {tail}: name it after what it holds"))
    unpicklers = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Import(names=names):
                found += [(line, f"import {a.name}: {_UNPICKLED}") for a in names if a.name.split(".")[0] in unpicklers]
            case ast.ImportFrom(module=str(module), names=names):
                loads = module in {"torch", "torch.serialization"} and any(a.name in {"load", "save"} for a in names)
                if loads or module.split(".")[0] in unpicklers:
                    found.append((line, f"from {module} import ...: {_UNPICKLED}"))
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" as verb):
                found.append((line, f"torch.{verb}: {_UNPICKLED}"))
            case ast.keyword(arg="allow_pickle", value=value) if getattr(value, "value", None) is not False:
                found.append((value.lineno, f"allow_pickle: {_UNPICKLED}"))
            case ast.Assert():
                found.append((line, "assert: raise an error that says what was got and what is needed"))
            case ast.FunctionDef(name=name) if name.startswith("get_"):
                found.append((line, f"{name}: a method is a verb of the field, or a property"))
            case ast.ClassDef(name=name) if name.startswith("Base") or name.endswith("Base"):
                found.append((line, f"{name}: name the class after what it is"))
    return [f"{path}:{line}: {what}" for line, what in found]


_UNPICKLED = "nothing is ever unpickled; tensors are stored by safetensors"


@pytest.mark.parametrize("path", SOURCES)
def test_nothing_forbidden(path: str):
    assert forbidden(SOURCES[path].read_text(), path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", "import pickle"),
        ("a.py", "def late():\n    from pickle import loads"),
        ("a.py", "import torch\ntorch.load('x')"),
        ("a.py", "from torch import load"),
        ("a.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
        ("a.py", "assert 1 > 0"),
        ("a.py", "class A:\n    def get_x(self): ...\n"),
        ("a.py", "class PathBase: ..."),
        ("paths/utils.py", ""),
    ],
)
def test_what_is_forbidden_is_seen(path: str, source: str):
    assert len(forbidden(source, path)) == 1


# Public names


def load(name: str) -> ModuleType | None:
    """A module of the package; None where a third-party package of an extra is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "genmatch":
            raise
        return None


def modules() -> list[ModuleType]:
    names = (["genmatch", *path.removesuffix(".py").removesuffix("__init__").strip("/").split("/")] for path in SOURCES)
    loaded = (load(".".join(filter(None, name))) for name in names if name[-1] != "__main__")
    return [module for module in loaded if module is not None]


def undocumented(names: Iterable[tuple[str, object]]) -> list[str]:
    """The classes and functions among the given that have no docstring of their own."""
    complaints = []
    for name, value in names:
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        doc = value.__doc__ or ""  # not inherited; a dataclass without one gets its signature, a named tuple another
        if len(doc.split()) < 3 or doc.startswith(f"{value.__name__}("):
            complaints.append(name)
    return complaints


@pytest.mark.parametrize("name", genmatch.__all__)
def test_public_name_resolves_and_is_documented(name: str):
    value = getattr(genmatch, name)
    if name != "__version__":
        assert value.__doc__, f"gm.{name} has no docstring"
        assert undocumented([(f"gm.{name}", value)]) == []


def test_public_modules_list_their_names_and_document_them():
    public = {*genmatch._MODULES, *genmatch._NAMES.values()}
    for module in modules():
        unit = [*module.__name__.split("."), ""][1]
        if module.__name__.count(".") == 1 and unit in public:
            assert hasattr(module, "__all__"), f"{module.__name__} is public and has no __all__"
        names = [(f"{module.__name__}.{name}", getattr(module, name)) for name in getattr(module, "__all__", ())]
        assert undocumented(names) == []


def test_a_missing_docstring_is_seen():
    from dataclasses import dataclass
    from typing import NamedTuple

    class Silent(ModuleType): ...

    @dataclass
    class Record:
        x: int

    class Pair(NamedTuple):
        x: int

    def speak():
        """Say something sensible."""

    names = [("Silent", Silent), ("Record", Record), ("Pair", Pair), ("speak", speak), ("number", 3)]
    assert undocumented(names) == ["Silent", "Record", "Pair"]


def declared(source: str) -> dict[str, str]:
    """Name -> module of the imports under ``if TYPE_CHECKING``, which is what a type checker sees of a lazy package."""
    names = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom):
                    names |= {alias.asname or alias.name: statement.module or "" for alias in statement.names}
    return names


def test_type_checkers_see_every_public_name():
    expected = {**dict.fromkeys(genmatch._MODULES, ""), **genmatch._NAMES}
    assert declared(SOURCES["__init__.py"].read_text()) == expected


# A base class is abstract or final


MAY_DIFFER = {  # written by dataclass and friends, or saying what an object is rather than what it does
    "__init__",
    "__new__",
    "__post_init__",
    "__repr__",
    "__eq__",
    "__hash__",
    "__replace__",
    "__setattr__",
    "__delattr__",
    "__getstate__",
    "__setstate__",
    "__init_subclass__",
    "extra_repr",
}


def is_concrete(cls: type, name: str) -> bool:
    """Whether a class itself defines ``name`` as a method or property with a body."""
    value = cls.__dict__.get(name)
    if not isinstance(value, FunctionType | property | cached_property | classmethod | staticmethod):
        return False
    return not getattr(value, "__isabstractmethod__", False) and not getattr(cls, "_is_protocol", False)


def overrides(classes: Iterable[type]) -> list[str]:
    """The concrete methods of the given classes that another of them, a subclass, defines anew."""
    classes = list(classes)
    return [
        f"{child.__module__}.{child.__qualname__}.{name} overrides {parent.__module__}.{parent.__qualname__}.{name}"
        for child in classes
        for parent in child.__mro__[1:]
        if parent in classes
        for name in child.__dict__
        if name not in MAY_DIFFER and is_concrete(parent, name)
    ]


def test_no_concrete_method_is_overridden():
    classes = {
        cls: None
        for module in modules()
        for cls in vars(module).values()
        if inspect.isclass(cls) and cls.__module__.split(".")[0] == "genmatch"
    }
    assert overrides(classes) == []


def test_an_overridden_method_is_seen():
    namespace: dict = {}
    source = """
    from abc import ABC, abstractmethod
    class Shape(ABC):
        sides = 0
        @abstractmethod
        def area(self): ...
        def name(self): return "shape"
    class Square(Shape):
        sides = 4
        def __init__(self): ...
        def area(self): return 1
    class Loud(Square):
        sides = 5
        def __init__(self): ...
        def area(self): return 2
        @property
        def name(self): return "SQUARE"
    """
    exec(textwrap.dedent(source), namespace)
    classes = [namespace[name] for name in ("Shape", "Square", "Loud")]
    assert [line.split(" overrides ") for line in overrides(classes)] == [
        ["builtins.Loud.area", "builtins.Square.area"],
        ["builtins.Loud.name", "builtins.Shape.name"],
    ]
