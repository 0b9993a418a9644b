"""Compressed networks as ONNX files that ONNX Runtime runs on integers.

PyTorch's exporter writes the float graph, which `onnx_graph` rewrites: BatchNorm and constants are
folded, and layers with low-bit weights put on integers. Weights of 2 to 8 bits are stored as int8,
the narrowest form ONNX Runtime has kernels for; how many bits each uses stands in the file's
metadata. Integers of fewer than 7 bits are stored times a power of two: the same weights, but a
bias, which lies at multiples of input scale times weight scale, then has so much finer steps.

Integer kernels compute sixteen channels at once. Maps of fewer get their columns folded into
channels, see `onnx_graph.folds`, and what still is no multiple is filled up with zeros, see
`onnx_graph.blocks`; outputs do not change by either.

Where the compressed network rounds a layer's input, the file does too. All other activations that
integer kernels read or write are rounded to 256 levels, in ranges of calibration images: of twelve
clips of the range between the least and the largest value seen, the one with the least squared
error.

On processors without VNNI, ONNX Runtime adds pairs of products in 16 bits, which may saturate; see
`runtime.EXACT`. The comparison in the report runs on the machine that exports.
"""

from __future__ import annotations

import json
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.modules import become, own_copy, shared_parameters
from automl_compress.compress.quantize import InputQuantizer, is_quantized
from automl_compress.deploy.runtime import (
    INTEGER_LAYERS,
    Runner,
    batches,
    kernels,
    outputs,
    require_onnx,
)
from automl_compress.errors import InputError
from automl_compress.settings import file_path, one_line, shown
from automl_compress.user_code import user_code
from automl_compress.workload import replacing, unwrapped
from automl_compress.workload.torch_modes import usual_modes

if TYPE_CHECKING:
    import onnx_ir as ir

    from automl_compress.deploy.onnx_graph.folds import MapLayer
    from automl_compress.deploy.onnx_graph.grids import Grid
    from automl_compress.deploy.onnx_graph.low_bit_layers import LowBitLayer
    from automl_compress.deploy.onnx_graph.qdq import QdqPass

OPSET: Final = 20
_EXPORTERS: Final = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")
METADATA: Final = "automl_compress"
"""Key of the file's metadata that holds what was done, as JSON."""
_BATCH: Final = 8
_TINY: Final = 1e-12
SAFE_BITS: Final = 7
"""Two products with integers of so many bits never saturate a sum of 16 bits."""
_EXPORTING: Final = threading.Lock()
"""PyTorch exports one network at a time, and what quiets it is the whole process's."""


@dataclass(frozen=True)
class OnnxReport:
    """What an exported file holds and how it compares with the PyTorch network.

    Args:
        path: the file.
        size_bytes: its size.
        weight_bits: bits of every layer whose weights are stored as integers, by name.
        integer_kernels: nodes that ONNX Runtime runs with integer kernels on this machine, those
            of channel shortcuts included.
        images: how many inputs were compared.
        top1_agreement: share of equal positions of the largest value along axis 1 of the first
            output, in [0, 1].
        largest_difference: of any output value.
        largest_output: largest absolute output of the PyTorch network, to judge that by.
        differences: of every output by name, the largest difference over the largest absolute
            value.
    """

    path: Path
    size_bytes: int
    weight_bits: dict[str, int]
    integer_kernels: int
    images: int
    top1_agreement: float
    largest_difference: float
    largest_output: float
    differences: dict[str, float]


@usual_modes()
def export_onnx(
    model: nn.Module,
    path: Path | str,
    example_input: Tensor,
    calibration: Tensor | None = None,
    int8: bool = True,
    images: Tensor | None = None,
) -> OnnxReport:
    """Write a network as an ONNX file, checked and compared with PyTorch.

    Args:
        model: a network, compressed by `automl_compress.compress` or not; not changed. Layers
            without low-bit weights stay in float32. It may give one tensor, or a mapping or
            tuple of them, which become outputs with the mapping's names.
        path: the file; it appears whole or not at all.
        example_input: (1, channels, height, width), or whatever the network takes; the file takes
            any number of them.
        calibration: (n, ...) training inputs that choose ranges of activations; needed where INT8
            layers read what the network itself does not round.
        int8: whether low-bit layers run on integers; False stores everything in float32, and the
            file computes what the PyTorch network computes, to float32 rounding.
        images: (n, ...) inputs of the comparison; else the calibration inputs, else the example.

    Raises:
        InputError: a library is missing, the network cannot be exported or gives other things
            than tensors, calibration inputs are missing, or the file cannot be written.
    """
    require_onnx()
    path = file_path(path, "an ONNX file")
    _check_folder(path)
    _check_inputs(example_input, calibration, images)
    network = _frozen(model)
    compared = next(x for x in (images, calibration, example_input) if x is not None)
    expected = _expected(network, compared)
    exported, held = _graph(network, example_input, list(expected), calibration, int8)
    content = _checked(exported)
    computed = outputs(Runner(content), _array(compared), _BATCH)
    actual = dict(zip(expected, computed, strict=True))
    _write(path, content)
    first = next(iter(expected))
    off = {name: _largest(actual[name] - value) for name, value in expected.items()}
    size = {name: _largest(value) for name, value in expected.items()}
    return OnnxReport(
        path=path,
        size_bytes=len(content),
        weight_bits={layer.name: layer.bits for layer in held},
        integer_kernels=_integer_kernels(content) if held else 0,
        images=len(compared),
        top1_agreement=float((actual[first].argmax(1) == expected[first].argmax(1)).mean()),
        largest_difference=max(off.values()),
        largest_output=max(size.values()),
        differences={name: off[name] / max(size[name], _TINY) for name in expected},
    )


def _integer_kernels(content: bytes) -> int:
    found = kernels(content)
    return sum(found[kind] for kind in INTEGER_LAYERS)


def _largest(values: Any) -> float:
    return float(np.abs(values).max())


def onnx_content(
    model: nn.Module, example_input: Tensor, calibration: Tensor | None = None, int8: bool = True
) -> bytes:
    """The bytes of the file that `export_onnx` would write, not compared with PyTorch.

    Raises:
        InputError: as `export_onnx` does.
    """
    require_onnx()
    _check_inputs(example_input, calibration, None)
    network = _frozen(model)
    names = list(_expected(network, example_input))
    return _checked(_graph(network, example_input, names, calibration, int8)[0])


def _frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the values of the model's parameters.

    Raises:
        InputError: it is no network.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a network must be an nn.Module, but is {shown(model)}; give the module")
    model = unwrapped(model)
    return own_copy(model, shared_parameters(model)).cpu().eval()


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(
            f"the folder of the ONNX file must exist, but '{path.parent}' does not; make it"
        )


def _check_inputs(example: Tensor, calibration: Tensor | None, images: Tensor | None) -> None:
    given = {"example_input": example, "calibration": calibration, "images": images}
    for name, inputs in given.items():
        if inputs is None and name != "example_input":
            continue
        if not isinstance(inputs, Tensor):
            raise InputError(
                f"{name} must be one tensor of inputs, but is {shown(inputs)}; stack them"
            )
        if inputs.shape[1:] != example.shape[1:] or inputs.dtype != example.dtype:
            raise InputError(
                f"{name} must hold inputs like the example, {tuple(example.shape[1:])} "
                f"{example.dtype}, but they are {tuple(inputs.shape[1:])} {inputs.dtype}; "
                "prepare them alike"
            )
        if not len(inputs):
            raise InputError(f"{name} must hold inputs, but there are 0; pass some or None")


def _expected(network: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """(n, ...) what PyTorch computes, by output name.

    Raises:
        InputError: the network fails.
    """
    what = f"the network on inputs of shape {tuple(inputs.shape[1:])}"
    with user_code(what, InputError, "check the inputs' shape"), torch.no_grad():
        found = [_named(network(part)) for part in torch.split(inputs.cpu(), _BATCH)]
    return {name: torch.cat([part[name] for part in found]).numpy() for name in found[0]}


def _named(output: Any) -> dict[str, Tensor]:
    """A network's outputs by name.

    Raises:
        InputError: they are no tensors with a batch and a class axis.
    """
    named = {"output": output}
    if isinstance(output, Mapping):
        named = {str(name): value for name, value in output.items()}
    elif isinstance(output, tuple | list):
        named = {f"output_{place}": value for place, value in enumerate(output)}
    for value in named.values():
        if not isinstance(value, Tensor) or value.dim() < 2:
            given = f"Tensor of {value.dim()} axes" if isinstance(value, Tensor) else _kind(value)
            within = "" if value is output else f" in a {_kind(output)}"
            raise InputError(
                "a network for ONNX must give tensors with a batch and a class axis, but gives "
                f"a {given}{within}; wrap it in a module that returns tensors"
            )
    return named


def _kind(value: Any) -> str:
    return type(value).__name__


def _graph(
    network: nn.Module,
    example_input: Tensor,
    names: list[str],
    calibration: Tensor | None,
    int8: bool,
) -> tuple[ir.Model, list[LowBitLayer]]:
    """The ONNX graph and the layers in it that run on integers; changes the network."""
    from automl_compress.deploy.onnx_graph.blocks import fill_blocks
    from automl_compress.deploy.onnx_graph.columns import fold_columns
    from automl_compress.deploy.onnx_graph.qdq import QdqPass

    program, weights = _float_graph(network, example_input, names, int8)
    quantizer = QdqPass(program.model, weights)
    if quantizer.held:
        grids = _grids(program.model, quantizer, calibration)
        weights = fold_columns(program.model.graph, weights)
        quantizer = QdqPass(program.model, fill_blocks(program.model.graph, weights))
        quantizer.insert(grids)
    held = list({layer.name: layer for layer in quantizer.held}.values())
    _label(program.model, held)
    return program.model, held


def _float_graph(
    network: nn.Module, example_input: Tensor, names: list[str], int8: bool
) -> tuple[Any, dict[str, LowBitLayer]]:
    """The exporter's program, BatchNorm folded, and low-bit layers by their weight's initializer.

    Changes the network.
    """
    from automl_compress.deploy.onnx_graph.blocks import pool_means
    from automl_compress.deploy.onnx_graph.gates import write_gates
    from automl_compress.deploy.onnx_graph.low_bit_layers import name_weights, separate_weights
    from automl_compress.deploy.onnx_graph.simplify import simplify

    low_bit = _low_bit_layers(network) if int8 else {}
    for module in list(network.modules()):
        if is_quantized(module) and module.weight_bits and int8:
            module._modules["input_quantizer"] = None
        if isinstance(module, ChannelMap):
            # ONNX Runtime would change the layout for an index_select and back, at every shortcut.
            become(module, module.as_convolution().requires_grad_(False))
        if isinstance(module, nn.RReLU):  # the exporter knows none
            become(module, nn.LeakyReLU((module.lower + module.upper) / 2))
    program = _exported(network, example_input, names)
    for node in program.model.graph:
        node.metadata_props.clear()  # stack traces of the exporting machine
    weights = name_weights(program.model.graph, low_bit)
    simplify(program.model)
    if weights:
        pool_means(program.model.graph)
        write_gates(program.model.graph)
    return program, separate_weights(program.model.graph, weights)


def foldable_maps(model: nn.Module, example_input: Tensor) -> tuple[MapLayer, ...]:
    """Convolutions between maps that the exporter may fold and fill up, whatever their widths are.

    Args:
        model: a compressed network; not changed. Without low-bit layers it has none.
        example_input: (1, ...) what it takes.

    Raises:
        InputError: it cannot be exported.
    """
    require_onnx()
    network = _frozen(model)
    if not _low_bit_layers(network):
        return ()
    from automl_compress.deploy.onnx_graph.blocks import fillable_ends
    from automl_compress.deploy.onnx_graph.columns import read_maps

    names = list(_expected(network, example_input))
    program, weights = _float_graph(network, example_input, names, True)
    layers = [layer for _, layer in read_maps(program.model.graph, weights).layers]
    ends = fillable_ends(program.model.graph, weights)
    return tuple(replace(layer, fillable=ends[layer.name]) for layer in layers)


def _low_bit_layers(network: nn.Module) -> dict[str, LowBitLayer]:
    """Layers with low-bit weights by every name they stand under."""
    from automl_compress.deploy.onnx_graph.low_bit_layers import LowBitLayer

    found = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if is_quantized(module) and module.weight_bits:
            scales = module.get_buffer("weight_scale")
            steps = scales.reshape(-1, *[1] * (module.weight.dim() - 1))
            widening = 2 ** max(0, SAFE_BITS - module.weight_bits)
            integers = ((module.weight / steps).round() * widening).to(torch.int8).numpy()
            quantizer = module.input_quantizer
            grid = None if quantizer is None else _grid_of(quantizer)
            narrow = (scales / widening).numpy()
            found[name] = LowBitLayer(name, module.weight_bits, integers, narrow, grid)
        elif isinstance(module, ChannelMap):
            integers = module.as_convolution().weight.detach().to(torch.int8).numpy()
            ones = torch.ones(module.out_channels).numpy()
            found[name] = LowBitLayer(name, 8, integers, ones, None, moves=True)
    return found


def _grid_of(quantizer: InputQuantizer) -> Grid:
    """A quantizer's levels on uint8, the lowest as 0."""
    from automl_compress.deploy.onnx_graph.grids import Grid

    return Grid(float(quantizer.scale), quantizer.zero_point, 0, 2**quantizer.bits - 1)


def _exported(network: nn.Module, example_input: Tensor, names: list[str]) -> Any:
    """The exporter's program for any batch size, with outputs of the given names.

    Raises:
        InputError: PyTorch cannot export the network.
    """
    two = example_input[:1].cpu().expand(2, *example_input.shape[1:]).contiguous()
    program: Any
    try:
        with _EXPORTING, _quiet():
            program = torch.onnx.export(
                network,
                (two,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as reason:
        cause = reason.__cause__ or reason
        raise InputError(
            "PyTorch must be able to export the network for any batch size, but says: "
            f"{type(cause).__name__}: {one_line(cause)[:200]}; keep data-dependent code out of it"
        ) from reason
    batch = program.model.graph.inputs[0].shape[0]
    if isinstance(batch, int):
        raise InputError(
            f"a network for ONNX must take any batch size, but its code fixes {batch}; "
            "use x.shape[0] in place of len(x)"
        )
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, and graphs that it prints, which are about itself."""
    loggers = [logging.getLogger(name) for name in _EXPORTERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _grids(model: ir.Model, quantizer: QdqPass, calibration: Tensor | None) -> dict[str, Grid]:
    """Grids of activations from calibration inputs.

    Raises:
        InputError: they are needed, but not given.
    """
    import onnx
    import onnx_ir as ir

    from automl_compress.deploy.onnx_graph.grids import Ranges

    names = quantizer.uncalibrated()
    if not names:
        return {}
    if calibration is None:
        raise InputError(
            f"INT8 needs calibration inputs for the ranges of {len(names)} activations, but there "
            "are none; pass calibration, or int8=False"
        )
    ranges = Ranges()
    graph = ir.to_proto(model)
    inputs = [name for name in names if name == "input"]
    inner = [name for name in names if name != "input"]
    declared = {output.name for output in graph.graph.output}
    graph.graph.output.extend(onnx.ValueInfoProto(name=n) for n in inner if n not in declared)
    runner = Runner(graph.SerializeToString(), layouts=False)
    for part in batches(_array(calibration), _BATCH):
        for name in inputs:
            ranges.add(name, part)
        for name, values in zip(inner, runner(part, inner), strict=True):
            ranges.add(name, values)
    return ranges.grids()


def _label(model: ir.Model, held: list[LowBitLayer]) -> None:
    """State in the file what its integers mean."""
    content = {
        "format": "QDQ INT8" if held else "float32",
        "weight_bits": {layer.name: layer.bits for layer in held},
    }
    model.metadata_props[METADATA] = json.dumps(content)
    model.producer_name = "automl_compress"


def _checked(model: ir.Model) -> bytes:
    """The file's bytes, after onnx's own full check."""
    import onnx
    import onnx_ir as ir
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as reason:
        raise InputError(
            f"the ONNX file must be writable, but '{path}' is not ({reason.strerror}); "
            "choose another path"
        ) from reason


def _array(inputs: Tensor) -> Any:
    return inputs.detach().cpu().numpy()
