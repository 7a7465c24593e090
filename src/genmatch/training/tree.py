"""Nested containers as JSON and named tensors, and back, exactly.

The state of an optimiser is a tree of dicts, lists, tuples, numbers and tensors. A file holds flat tensors and a text.
:func:`pack` makes the second from the first; :func:`unpack` is its inverse, to the last bit, including integer keys,
tuples, dtypes, and the memory layout (``channels_last``) that fused optimisers expect of their state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """``tree`` as (what ``json`` can write, tensors by name).

    Parameters
    ----------
    tree
        Dicts (keys: strings, numbers, booleans, None), lists, tuples, strings, numbers, booleans, None, and strided
        tensors. A tensor that occurs twice is stored once.

    Returns
    -------
    The packed tree, in which a tensor is ``{"tensor": name}``, a tuple ``{"tuple": [...]}`` and a dict
    ``{"dict": [[key, value], ...]}``; and the tensors, detached but not copied. A name is the path to the tensor,
    joined by dots.

    Raises
    ------
    TypeError
        If the tree holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    seen: dict[tuple, str] = {}

    def walk(value: Any, path: tuple[str, ...]) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return _pack_tensor(value.detach(), ".".join(path), tensors, seen)
        if isinstance(value, Mapping):
            for key in value:
                if key is not None and not isinstance(key, bool | int | float | str):
                    raise TypeError(f"{'.'.join(path)} has the key {key!r}: keys are strings or numbers")
            return {"dict": [[key, walk(item, (*path, str(key)))] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            items = [walk(item, (*path, str(i))) for i, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        raise TypeError(
            f"{'.'.join(path) or 'the tree'} is {type(value).__name__}: a file holds tensors, numbers, strings, lists, "
            "tuples and dicts, and nothing that would have to be unpickled"
        )

    return walk(tree, ()), tensors


def _pack_tensor(tensor: Tensor, name: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{name} is a {tensor.layout} tensor: only dense tensors can be stored")
    where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    # Empty tensors all live at address 0.
    if not (tensor.numel() and where in seen):
        while name in tensors:  # {"a.b": x} beside {"a": {"b": y}}
            name += "~"
        tensors[name], seen[where] = tensor, name
    else:
        name = seen[where]
    return {"tensor": name} if tensor.is_contiguous() else {"tensor": name, "stride": list(tensor.stride())}


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that :func:`pack` was given.

    Raises
    ------
    ValueError
        If a tensor is missing, or ``packed`` is not what :func:`pack` makes.
    """
    if packed is None or isinstance(packed, bool | int | float | str):
        return packed
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    match packed:
        case {"tuple": list(items)}:
            return tuple(unpack(item, tensors) for item in items)
        case {"dict": list(items)}:
            return {key: unpack(item, tensors) for key, item in items}
        case {"tensor": str(name)} if name in tensors:
            stride = packed.get("stride")
            tensor = tensors[name]
            return tensor if stride is None or not _is_dense(tensor.shape, stride) else _lay_out(tensor, stride)
        case {"tensor": str(name)}:
            raise ValueError(f"the tensor {name!r} is missing")
    raise ValueError(f"this is no packed tree: {packed!r}")


def _is_dense(shape: torch.Size, stride: list[int]) -> bool:
    """Whether a layout fills its memory: expanded tensors do not."""
    extent = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return extent == shape.numel() and all(step > 0 for size, step in zip(shape, stride, strict=True) if size > 1)


def _lay_out(tensor: Tensor, stride: list[int]) -> Tensor:
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
