"""Weights from a file into a network, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import nn

from automl_compress.errors import WorkloadError
from automl_compress.user_code import described

_PICKLED: Final = (".pt", ".pth", ".th")
_WRAPPERS: Final = ("state_dict", "model", "model_state_dict")
_PREFIXES: Final = ("module.", "_orig_mod.")
_COUNTER: Final = "num_batches_tracked"

State = dict[str, torch.Tensor]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a network; every tensor must fit.

    A `.pt`, `.pth` or `.th` file may wrap the state dict in `state_dict`, `model` or
    `model_state_dict`, and names may share a prefix left by parallel training. Such a file is
    read without running code from it. BatchNorm's step counters may be missing.

    Args:
        model: receives the weights.
        path: a `.safetensors`, `.pt`, `.pth` or `.th` file.

    Raises:
        WorkloadError: the file cannot be read, holds something else, does not fit, or holds
            numbers that are not finite. The network is then unchanged.
    """
    state = _without_prefix(read_state(path))
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name.rpartition(".")[2] == _COUNTER:
            state.setdefault(name, value)
    _check_fit(state, wanted, path)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise WorkloadError(
                f"weights must be finite, but '{name}' in '{path}' holds NaN or infinity; "
                f"give the weights of a training that converged"
            )
    model.load_state_dict(state)


def check_there(path: Path) -> None:
    """Check that a weights file exists.

    Raises:
        WorkloadError: it does not.
    """
    if not path.is_file():
        raise WorkloadError(
            f"the weights file must exist, but '{path}' does not; correct 'weights' "
            f"(it may be relative to the sweep file's folder or to the current folder)"
        )


def read_state(path: Path) -> State:
    """The named tensors of a weights file, on the CPU.

    Raises:
        WorkloadError: the file cannot be read or holds something else.
    """
    check_there(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as reason:
            raise _unreadable(path, reason) from reason
    if path.suffix in _PICKLED:
        return _pickled(path)
    raise WorkloadError(
        f"a weights file must end in .safetensors, .pt, .pth or .th, but is '{path}'; convert it"
    )


def _pickled(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:
        if "weights_only" in str(reason) or "Unsupported" in str(reason):
            raise WorkloadError(
                f"a weights file must hold tensors only, but '{path}' holds pickled code, which "
                f"is not run; save model.state_dict() instead of the model"
            ) from reason
        raise _unreadable(path, reason) from reason
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((content[key] for key in _WRAPPERS if key in content), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not _is_state(content):
        raise WorkloadError(
            f"a weights file must hold a state dict (names to tensors), but '{path}' holds "
            f"{_content(content)}; save model.state_dict()"
        )
    return dict(content)


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    )


def _content(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with the keys {', '.join(map(str, list(content)[:4])) or '(none)'}"
    return f"an object of type {type(content).__name__}"


def _unreadable(path: Path, reason: BaseException) -> WorkloadError:
    return WorkloadError(
        f"a weights file must be readable, but reading '{path}' raised {described(reason)}; "
        f"give a complete file"
    )


def _without_prefix(state: State) -> State:
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _without_prefix({name[len(prefix) :]: value for name, value in state.items()})
    return state


def _check_fit(state: State, wanted: Mapping[str, torch.Tensor], path: Path) -> None:
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshaped = [
        name for name in wanted if name in state and state[name].shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {what} (first '{names[0]}')"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if misshaped:
        name = misshaped[0]
        problems.append(
            f"{len(misshaped)} of another shape (first '{name}': {tuple(state[name].shape)} in "
            f"the file, {tuple(wanted[name].shape)} in the model)"
        )
    if problems:
        raise WorkloadError(
            f"weights must fit the model, but of those in '{path}' "
            f"{', '.join(problems)}; give the weights of this model or correct model_args"
        )
