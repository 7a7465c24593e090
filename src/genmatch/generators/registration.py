"""What of an operator is registered where, so that its state dict holds every tensor once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["Own", "keep_once"]


class Own(nn.Module):
    """A generator's parameters, buffers and submodules apart from its networks, which are registered elsewhere."""

    def __init__(self, generator: nn.Module) -> None:
        self.__dict__["_generator"] = generator  # not as a submodule: its networks would be here again
        super().__init__()
        # The dicts themselves are shared, so whatever .to() or load_state_dict does here happens to the generator.
        self._parameters, self._buffers = generator._parameters, generator._buffers
        self._non_persistent_buffers_set = generator._non_persistent_buffers_set
        for name, module in generator._modules.items():
            if name != "models":
                self._modules[name] = module

    @property
    def training(self) -> bool:
        """The generator's own mode: ``train()`` and ``eval()`` of a sum reach its terms."""
        return self.__dict__["_generator"].training

    @training.setter
    def training(self, mode: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.__dict__["_generator"].training = mode


def keep_once(module: nn.Module) -> None:
    """Make ``module`` save tensors that it reaches by several names (a network in two predictors) under the first."""
    module.register_state_dict_post_hook(_drop)
    module.register_load_state_dict_pre_hook(_restore)


def _aliases(module: nn.Module) -> dict[str, str]:
    """For each further name of a tensor its first one."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    tensors: list[tuple[str, Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        known = first.setdefault(id(tensor), name)
        if known != name:
            aliases[name] = known
    return aliases


def _drop(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in _aliases(module):
        state.pop(prefix + name, None)


def _restore(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for name, known in _aliases(module).items():
        if prefix + name not in state and prefix + known in state:
            state[prefix + name] = state[prefix + known]
