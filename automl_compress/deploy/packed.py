"""Compressed networks in one small file.

A packed file is a safetensors file of one byte tensor, whose name holds format and version. Its
bytes are a checksum of the others, the length of the layout, the layout (see `layout_bytes`)
and then every tensor of the network in the layout's order:

- weights on a low-bit grid as `integer + 2^(bits-1)`, packed at their bits (see `bit_packing`);
- everything else as its little-endian values; of buffers that are not persistent only those that
  are cut, since the network's own code makes them whole;
- of four-dimensional weights with 2-D kernels that are zero, where that is smaller, a bit for
  every kernel and then the other kernels alone.

So the file is what `CostModel` promises as `size_bytes`, plus 80 bytes and the layout, which takes
50 to 300 bytes where the original network is known when the file is written. Nothing in it is
executed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.deploy.architecture import known_network, original_network
from automl_compress.deploy.layout import Layout, describe, rebuild, tensors_of
from automl_compress.deploy.layout_bytes import Written, in_order, read_varint, varint, written
from automl_compress.deploy.tensor_bytes import decode, encode
from automl_compress.deploy.tensor_files import damaged, read_file, write_stream
from automl_compress.errors import DeployError
from automl_compress.settings import file_path, one_line, shown
from automl_compress.space import Policy
from automl_compress.workload.torch_modes import usual_modes

FORMAT: Final = "packed"
VERSION: Final = 3
"""Raised whenever files change in a way that older readers cannot follow."""
_CHECKSUM: Final = 4
"""Bytes of the checksum."""
_BROKEN: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, zlib.error),
)
"""What reading damaged content may raise."""


@usual_modes()
def save_packed(
    model: nn.Module,
    path: str | Path,
    policy: Policy | None = None,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    original: nn.Module | None = None,
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
        original: the network before compression, with any weights. What it tells is left out of
            the file, up to 1.5 kB. That of a shipped architecture need not be given.

    Returns:
        Bytes on disk.

    Raises:
        DeployError: the policy is not that of the network, weights are off their grid, or the
            file cannot be written.
        TraceError: the network cannot be copied.
        WorkloadError: the arguments do not fit the architecture.
    """
    place = file_path(path, "a packed file", DeployError)
    _check_words(policy, architecture, arguments)
    network = working_copy(model, share=True)
    layout = describe(network, policy, architecture, arguments)
    if original is None:
        original = known_network(architecture, arguments or {})
    reference = None if original is None else _reference(original)
    if reference is not None:
        layout = in_order(layout, reference)
    layout, contents = encode(layout, tensors_of(network, layout))
    head = written(layout, reference)
    parts = [varint(len(head)), head, *contents]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    parts.insert(0, checksum.to_bytes(_CHECKSUM, "little"))
    return write_stream(place, parts, FORMAT, VERSION)


def _check_words(policy: object, architecture: object, arguments: object) -> None:
    """Check what a file says in words of its network."""
    if not isinstance(policy, Policy | None):
        raise DeployError(
            f"a policy must be the one that its network was built by, but is {shown(policy)}; give "
            "that after the path"
        )
    if not isinstance(architecture, str | None):
        raise DeployError(
            f"an architecture must be a factory's name, but is {shown(architecture)}; correct it"
        )
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as reason:
        raise DeployError(
            f"a factory's arguments must be plain JSON values, but are {shown(arguments)}; leave "
            "out what is none"
        ) from reason


def _reference(original: nn.Module) -> Layout:
    """The layout of an original network."""
    return describe(working_copy(original, share=True), None, None, None)


@usual_modes()
def load_packed(path: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Read a network that `save_packed` wrote; it gives the same outputs, bit for bit.

    PyTorch rounds some products otherwise where parameters want gradients, as those given here do
    and those of `Compressor.build` do not: compare networks that agree in that.

    No code from the file is run, and a factory that is not shipped only when `model` names it.

    Args:
        path: the file.
        model: the original network with any weights, or its factory's `package.module:factory`;
            not needed when the file names a shipped network.

    Returns:
        The network in evaluation mode, with trainable parameters. BatchNorm's step counters are
        those of the original.

    Raises:
        DeployError: the file is missing, damaged, of another version or something else, or it
            belongs to another network.
        WorkloadError: the factory fails.
    """
    place = file_path(path, "a packed file", DeployError)
    head, content = _read(place)
    original = original_network(head.architecture, head.arguments, model)
    reference = _reference(original)
    layout = _layout(place, head, reference)
    if not _has_room(original, reference, layout):
        raise _made_from_another(place)
    try:
        tensors = decode(layout, content)
    except _BROKEN as reason:
        raise damaged(place, one_line(reason)) from reason
    return rebuild(layout, tensors, original)


def _has_room(original: nn.Module, reference: Layout, layout: Layout) -> bool:
    """Whether kernels are no larger than the original's; of those left out, no bytes tell it."""
    whole = {name: tuple(buffer.shape) for name, buffer in original.named_buffers()}
    whole |= {name: stored.shape for name, stored in reference.flat()}
    return all(
        len(stored.shape) == len(whole.get(name, ()))
        and all(size <= most for size, most in zip(stored.shape, whole[name], strict=True))
        for name, stored in layout.flat()
        if stored.kernels is not None
    )


def _made_from_another(path: Path) -> DeployError:
    return DeployError(
        f"a file must be read into the network it was made from, but '{path}' was made from "
        "another; give that network as 'model'"
    )


def read_layout(path: str | Path, model: nn.Module | str | None = None) -> Layout:
    """What a packed file says of its network, the policy included, without building it.

    Args:
        path: the file.
        model: as `load_packed` takes it; not needed either where the file was written without
            knowledge of the original network.

    Raises:
        DeployError: the file is missing, damaged, of another version or something else, or it
            belongs to another network.
    """
    head, _ = _read(Path(path))
    if not head.relative:
        return _layout(Path(path), head, None)
    original = original_network(head.architecture, head.arguments, model)
    return _layout(Path(path), head, _reference(original))


def _read(path: Path) -> tuple[Written, memoryview]:
    """The layout as far as it can be read without the original network, and the tensors' bytes."""
    _, tensors = read_file(path, FORMAT, VERSION)
    stream = next(iter(tensors.values()), torch.empty(()))
    if len(tensors) != 1 or stream.dtype != torch.uint8 or stream.dim() != 1:
        raise damaged(path, "it is no row of bytes")
    data: memoryview = stream.numpy().data
    if int.from_bytes(data[:_CHECKSUM], "little") != zlib.crc32(data[_CHECKSUM:]):
        raise damaged(path, "its checksum is wrong")
    try:
        length, place = read_varint(data, _CHECKSUM)
        return Written(data[place : place + length]), data[place + length :]
    except _BROKEN as reason:
        raise damaged(path, one_line(reason)) from reason


def _layout(path: Path, head: Written, original: Layout | None) -> Layout:
    """The layout, read with the help of the original network's."""
    if original is not None and not head.fits(original):
        raise _made_from_another(path)
    try:
        return head.layout(original)
    except _BROKEN as reason:
        raise damaged(path, one_line(reason)) from reason
