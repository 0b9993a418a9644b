"""Compressed networks in one small file.

A packed file is a safetensors file of one byte tensor, `data`, and a few words of metadata. The
bytes are the layout (see `layout`; JSON, deflated) and then every tensor of the network in the
layout's order:

- weights on a low-bit grid as `integer + 2^(bits-1)`, packed at their bits (see `packing`);
- everything else as its little-endian values;
- of four-dimensional weights with 2-D kernels that are zero, where that is smaller, a bit for
  every kernel and then the other kernels alone.

So the file is what `CostModel` promises as `size_bytes`, plus header and layout. Nothing in it
is executed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.tracing import working_copy
from automl_compress.deploy.architecture import original_network
from automl_compress.deploy.encoding import decode, encode
from automl_compress.deploy.files import damaged, read_file, write_file
from automl_compress.deploy.layout import Layout, describe, rebuild, tensors_of
from automl_compress.settings import one_line
from automl_compress.space import Policy

FORMAT: Final = "packed"
VERSION: Final = 1
"""Raised whenever files change in a way that older readers cannot follow."""
_DATA: Final = "data"


def save_packed(
    model: nn.Module,
    path: str | Path,
    policy: Policy | None = None,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Write a compressed network into one file, low-bit weights at their bits.

    The file is written whole or not at all.

    Args:
        model: as `compress` returns it; not changed. A network that is not compressed is stored
            as it is.
        path: the file, replaced if it exists; missing folders are made.
        policy: what the network was built by, kept in the file.
        architecture: the original network's factory, a shipped name such as `resnet56` or the
            user's own `package.module:factory`, so that `load_packed` needs no network.
        arguments: keyword arguments of that factory, plain JSON values.

    Returns:
        Bytes on disk.

    Raises:
        DeployError: the policy is not that of the network, weights are off their grid, or the
            file cannot be written.
        TraceError: the network cannot be copied.
    """
    network = working_copy(model)
    layout = describe(network, policy, architecture, arguments)
    layout, content = encode(layout, tensors_of(network, layout))
    text = json.dumps(layout.to_dict(), separators=(",", ":"))
    head = zlib.compress(text.encode(), 9)
    data = head + content
    words = {"layout": len(head), "crc32": zlib.crc32(data)}
    stream = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return write_file(Path(path), {_DATA: stream}, FORMAT, VERSION, words)


def load_packed(path: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Read a network that `save_packed` wrote; it gives the same outputs, bit for bit.

    No code from the file is run, and a factory that is not shipped only when `model` names it.

    Args:
        path: the file.
        model: the original network with any weights, or its factory's `package.module:factory`;
            not needed when the file names a shipped network.

    Returns:
        The network in evaluation mode, with trainable parameters. BatchNorm's step counters are
        those of the original.

    Raises:
        DeployError: the file is missing, damaged, of a newer version or something else, or it
            belongs to another network.
        WorkloadError: the factory fails.
    """
    layout, tensors = _read(Path(path))
    return rebuild(layout, tensors, original_network(layout, model))


def read_layout(path: str | Path) -> Layout:
    """What a packed file says of its network, the policy included, without building it.

    Raises:
        DeployError: the file is missing, damaged, of a newer version or something else.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Layout, dict[str, Tensor]]:
    words, tensors = read_file(path, FORMAT, VERSION)
    data = tensors[_DATA].numpy().tobytes() if _DATA in tensors else b""
    if words.get("crc32") != zlib.crc32(data):
        raise damaged(path, "its checksum is wrong")
    try:
        head = words["layout"]
        layout = Layout.from_dict(json.loads(zlib.decompress(data[:head])))
        return layout, decode(layout, memoryview(data)[head:])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as reason:
        raise damaged(path, one_line(reason)) from reason
