"""Compressed networks as plain tensors: a state dict in a safetensors file.

Every tensor stands under its own name, weights of low bits as the floats they stand for, so that
any program can read them: `safetensors.torch.load_file`. The layout beside them lets `load_state`
rebuild the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.deploy.architecture import original_network
from automl_compress.deploy.layout import (
    Layout,
    StoredTensor,
    describe,
    in_strides,
    rebuild,
    tensors_of,
)
from automl_compress.deploy.tensor_files import damaged, read_file, write_file
from automl_compress.settings import one_line
from automl_compress.space import Policy

FORMAT: Final = "torch"
VERSION: Final = 2
"""Raised whenever files change in a way that older readers cannot follow."""


def save_state(
    model: nn.Module,
    path: str | Path,
    policy: Policy | None = None,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Write a compressed network's tensors, each under its name.

    The file is written whole or not at all.

    Args:
        model: as `compress` returns it; not changed.
        path: the file, replaced if it exists; missing folders are made.
        policy: what the network was built by, kept in the file.
        architecture: the original network's factory, as in `save_packed`.
        arguments: keyword arguments of that factory, plain JSON values.

    Returns:
        Bytes on disk.

    Raises:
        DeployError: the policy is not that of the network, weights are off their grid, or the
            file cannot be written.
        TraceError: the network cannot be copied.
    """
    network = working_copy(model, share=True)
    layout = describe(network, policy, architecture, arguments)
    tensors = {name: t.contiguous().clone() for name, t in tensors_of(network, layout).items()}
    return write_file(Path(path), tensors, FORMAT, VERSION, {"layout": layout.to_dict()})


def load_state(path: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Read a network that `save_state` wrote.

    Args:
        path: the file.
        model: as for `load_packed`.

    Returns:
        As `load_packed` does.

    Raises:
        DeployError: the file is missing, damaged, of another version or something else, or it
            belongs to another network.
        WorkloadError: the factory fails.
    """
    place = Path(path)
    words, tensors = read_file(place, FORMAT, VERSION)
    try:
        layout = Layout.from_dict(words["layout"])
        tensors = {name: _as_stored(name, tensors[name], s) for name, s in layout.flat()}
    except (ValueError, KeyError, TypeError, AttributeError) as reason:
        raise damaged(place, one_line(reason)) from reason
    original = original_network(layout.architecture, layout.arguments, model)
    return rebuild(layout, tensors, original)


def _as_stored(name: str, tensor: Tensor, stored: StoredTensor) -> Tensor:
    """A tensor of a file in the strides it had.

    Raises:
        ValueError: its type is not the layout's, or the strides do not fit the shape.
    """
    if tensor.dtype != stored.torch_dtype:
        raise ValueError(f"'{name}' is {tensor.dtype}, not {stored.torch_dtype}")
    return in_strides(tensor, stored)
