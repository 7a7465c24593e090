"""The weights of a module in a safetensors file, strictly: every name, shape and dtype must agree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import read_tensors, write_tensors

__all__ = ["collect_weights", "fill_weights", "load", "save"]

# What names begin with in a checkpoint: the model's weights, and those of genmatch.nn.EMA.
MODEL, AVERAGED, COPIED = "model.", "ema.averaged.", "ema.copied."
_LISTED = 8


def save(path: str | os.PathLike[str], model: nn.Module, **metadata: Any) -> None:
    """Write the parameters and persistent buffers of a module to a safetensors file.

    The file is written atomically, and carries checksums. Shared tensors (tied weights) are stored once. Any program
    that reads safetensors reads it.

    Parameters
    ----------
    path
        Ends in ``.safetensors``; missing folders are made, an existing file is replaced.
    model
        Any module. ``with ema.applied(): save(path, model)`` writes averaged weights.
    **metadata
        Anything JSON can hold; :func:`load` returns it.

    Raises
    ------
    ValueError
        If the path ends otherwise.
    TypeError
        If the module's state holds something that is no tensor, or the metadata something that is not JSON.

    Examples
    --------
    >>> import tempfile, torch
    >>> layer, twin = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/layer.safetensors", layer, classes=["cat", "dog"])
    ...     load(f"{folder}/layer.safetensors", twin)
    {'classes': ['cat', 'dog']}
    >>> torch.equal(layer.weight, twin.weight)
    True
    """
    path = _check_path(path)
    tensors, aliases = collect_weights(model)
    write_tensors(path, tensors, {"kind": "weights", "format": 1, "aliases": aliases, "user": metadata})


def load(path: str | os.PathLike[str], model: nn.Module, *, ema: bool = False) -> dict[str, Any]:
    """Read the weights of a module from a file of :func:`save`, a checkpoint of :func:`fit`, or any safetensors file.

    Parameters
    ----------
    path
        The file.
    model
        A module of the same structure; its tensors keep their device and memory layout.
    ema
        Take the moving average of the weights that a checkpoint has, instead of the weights that were being trained.

    Returns
    -------
    The metadata given to :func:`save`; ``{"step": ...}`` for a checkpoint; ``{}`` where there is none.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, has no average that is asked for, or a name, shape or dtype differs; the model is then
        left as it was.
    """
    path = _check_path(path)
    tensors, content = read_tensors(path)
    check_format(path, content)
    if ema:
        tensors = _averaged(path, tensors)
    elif content.get("kind") == "checkpoint":
        tensors = _under(MODEL, tensors)
    fill_weights(model, tensors, content.get("aliases", {}), str(path))
    return {"step": content["step"]} if content.get("kind") == "checkpoint" else content.get("user", {})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _averaged(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The average of a checkpoint, in the dtypes of the weights: it is kept in float32 at least."""
    average = {**_under(AVERAGED, tensors), **_under(COPIED, tensors)}
    trained = _under(MODEL, tensors)
    if not average or not average.keys() <= trained.keys():
        raise ValueError(f"{path} has no moving average of the whole model: leave ema=True out")
    return {name: average[name].to(value.dtype) for name, value in trained.items() if name in average}


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Raise if a later version of this library wrote a file in another format."""
    if content.get("format", 1) != 1:
        raise ValueError(f"{path} has format {content['format']}, this version of genmatch reads format 1: update it")


def collect_weights(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a module's state by name, each once, and the other names of the shared ones."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in _state(module).items():
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and where in first:
            aliases[name] = first[where]
        else:
            first[where], tensors[name] = name, tensor.detach()
    return tensors, aliases


def fill_weights(module: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], source: str) -> None:
    """Copy tensors into a module's own; raise ``ValueError`` naming ``source``, and change nothing, if they differ."""
    own = _state(module)
    given = {**tensors, **{name: tensors[other] for name, other in aliases.items()}}
    complaints = [
        _list("it lacks", own.keys() - given.keys()),
        _list("the model lacks", given.keys() - own.keys()),
        _list(
            "shape or dtype differ in",
            (
                f"{name} ({_form(given[name])} in the file, {_form(own[name])} in the model)"
                for name in own.keys() & given.keys()
                if _form(given[name]) != _form(own[name])
            ),
        ),
    ]
    if any(complaints):
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(filter(None, complaints))}")
    for name, other in collect_weights(module)[1].items():
        if not torch.equal(given[name], given[other]):
            raise ValueError(
                f"{source} has different values for {name} and {other}, which are one tensor in "
                f"{type(module).__name__}: it comes from a model that does not tie them"
            )
    # A state_dict of the module itself carries the versions that its own loading hooks ask for.
    state = module.state_dict()
    for name in state:
        state[name] = given[_plain(name)]
    module.load_state_dict(state)


def _state(module: nn.Module) -> dict[str, Tensor]:
    state = {_plain(name): value for name, value in module.state_dict(keep_vars=True).items()}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} in the state of {type(module).__name__} is {type(value).__name__}: a file holds tensors only"
            )
        if nn.parameter.is_lazy(value):
            raise ValueError(f"{name} of {type(module).__name__} has no shape yet: call the model once before")
    return state


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "")  # what torch.compile puts before the names of the module it wraps


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _list(what: str, names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"{what} {', '.join(listed[:_LISTED])}{more}" if listed else ""


def _check_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are stored as safetensors, got {str(path)!r}: end the name in .safetensors")
    return path
