"""ONNX files: the integers they hold, what ONNX Runtime computes from them, and what is refused."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import (
    conv_bn,
    example,
    head,
    lively,
    network,
    random_policy,
    shared_compressor,
)
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.fold import fold_norms, foldable_norms
from automl_compress.compress.modules import share_copy
from automl_compress.compress.quantize import is_quantized
from automl_compress.deploy import onnx as onnx_export
from automl_compress.deploy import runtime
from automl_compress.deploy.onnx import METADATA, OnnxReport, export_onnx
from automl_compress.deploy.onnx_graph.simplify import simplify
from automl_compress.errors import InputError
from automl_compress.space import Policy

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

Integers = dict[str, "np.ndarray[Any, Any]"]


def slow(*names: str) -> list[Any]:
    """Cases that take the way of others: each is an export by PyTorch, which takes seconds."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def uniform(compressor: Compressor, bits: int, input_bits: int | None = None) -> Policy:
    """All layers at the same bits."""
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    genes = {f"weight_bits:{name}": bits for name in layers}
    if input_bits is not None:
        genes |= {f"activation_bits:{name}": input_bits for name in layers}
    return Policy(genes)


def built(name: str, seed: int = 0, activations: bool = True) -> tuple[nn.Module, Tensor]:
    images, compressor = example(name, 24), shared_compressor(name, 24)
    rng = np.random.default_rng(seed)
    return compressor.build(random_policy(compressor.structure, rng, activations)), images


def exact_session(path: Path) -> Any:
    """ONNX Runtime as README says files should be run on processors without VNNI."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if runtime.saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: Tensor) -> Any:
    """What ONNX Runtime computes, without the code under test."""
    session = exact_session(path)
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]


def initializers(path: Path) -> Integers:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def torch_outputs(model: nn.Module, inputs: Tensor) -> Any:
    with torch.no_grad():
        return model(inputs).numpy()


@pytest.mark.parametrize(
    "name",
    ["resnet8", "shuffle", "words", "weight-norm", *slow("mobile", "dense", "patch-mixer")],
)
def test_float_files_compute_what_pytorch_computes(name: str, tmp_path: Path) -> None:
    # Inputs stay float: one that lies between two levels may be rounded either way.
    model, images = built(name, seed=1, activations=False)
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, images[:1], int8=False, images=images)
    assert report.weight_bits == {}
    assert report.integer_kernels == 0
    for count in (1, 3, 24):
        expected = torch_outputs(model, images[:count])
        np.testing.assert_allclose(run(path, images[:count]), expected, atol=1e-4)
    assert report.largest_difference < 1e-4


@pytest.mark.parametrize(
    "name", ["resnet8", "grouped", "shared", "transformer", "signal", "volume", *slow("vgg")]
)
def test_integer_files_hold_our_integers_and_run_on_them(name: str, tmp_path: Path) -> None:
    """And the network, exported while it is in training, is left as it was."""
    model, images = built(name, seed=1)
    before, text = torch_outputs(model, images), repr(model.train())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, images[:1], images)
    assert repr(model) == text
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    np.testing.assert_array_equal(torch_outputs(model.eval(), images), before)
    layers = {
        name: module
        for name, module in model.named_modules()
        if is_quantized(module) and module.weight_bits
    }
    assert report.weight_bits == {name: layer.weight_bits for name, layer in layers.items()}
    assert report.weight_bits
    assert report.integer_kernels >= len(layers)
    held = initializers(path)
    for name, layer in layers.items():
        scales = layer.get_buffer("weight_scale").reshape(-1, *[1] * (layer.weight.dim() - 1))
        ours = (layer.weight / scales).round().detach().numpy()
        stored = held[f"{name}.weight_quantized"]
        assert stored.dtype == np.int8
        stored = stored.T if layer.weight.dim() == 2 and stored.shape != ours.shape else stored
        outputs, inputs = ours.shape[:2]
        bits = report.weight_bits[name]
        widening = 2 ** max(0, 7 - bits)
        np.testing.assert_array_equal(stored[:outputs, :inputs], ours * widening)
        assert not stored[outputs:].any()
        assert not stored[:, inputs:].any()
        assert np.abs(stored).max() <= (2 ** (bits - 1) - 1) * widening
        assert len(np.unique(stored)) < 2**bits
    parts = torch.split(images, 8)  # as the report compares; other batches give other last digits
    expected = np.concatenate([torch_outputs(model, part) for part in parts])
    actual = np.concatenate([run(path, part) for part in parts])
    assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()
    assert report.top1_agreement == (actual.argmax(1) == expected.argmax(1)).mean()
    assert report.largest_difference == pytest.approx(np.abs(actual - expected).max())
    assert run(path, images[:1]).shape == expected[:1].shape


def with_biases_on_their_grids(compressor: Compressor, model: nn.Module, x: Tensor) -> nn.Module:
    """The network with BatchNorm folded and biases as an INT8 file must hold them."""
    folded = share_copy(model)
    fold_norms(folded, foldable_norms(compressor.model, x))
    for layer in folded.modules():
        if is_quantized(layer):
            assert layer.input_quantizer is not None
            assert layer.bias is not None
            finer = 2 ** (7 - layer.weight_bits)  # integers are widened to 7 bits
            step = layer.input_quantizer.scale * layer.get_buffer("weight_scale") / finer
            bias = (layer.bias / step).round() * step
            layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    return folded


@pytest.mark.parametrize("repair", ["layerwise", *slow("none", "auto")])
def test_a_chain_that_rounds_every_input_rounds_nowhere_else(repair: Any, tmp_path: Path) -> None:
    """Every tensor has one reader, so the file needs no grid but those of the network."""
    images = example("vgg", 64)
    compressor = Compressor(network("vgg"), images[:1], images, repair=repair)
    model = compressor.build(uniform(compressor, 2, 4))
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, images[:1])  # no calibration inputs
    assert report.integer_kernels == 4
    layers = [m for m in model.modules() if is_quantized(m)]
    grids = [layer.input_quantizer for layer in layers if layer.input_quantizer]
    scales = {float(grid.scale) for grid in grids}
    held = initializers(path)
    of_weights = {name for name in held if "weight_scale" in name or "bias_scale" in name}
    found = {float(v) for name, v in held.items() if "scale" in name and name not in of_weights}
    assert found == scales
    assert {int(v) for name, v in held.items() if ".high" in name} == {15}
    zero_points = {int(v) for v in held.values() if v.dtype == np.uint8 and v.size == 1}
    assert zero_points == {15, *(grid.zero_point for grid in grids)}
    assert any(grid.zero_point for grid in grids)
    actual, expected = run(path, images), torch_outputs(model, images)
    rounded = torch_outputs(with_biases_on_their_grids(compressor, model, images[:1]), images)
    largest = np.abs(expected).max()
    assert np.abs(actual - rounded).max() < 1e-4 * largest
    assert np.abs(actual - expected).max() < 0.05 * largest


def test_folding_batchnorm_changes_signs_and_scales_alone(tmp_path: Path) -> None:
    model: Any = lively(nn.Sequential(conv_bn(3, 6), head(6))).eval()
    with torch.no_grad():
        model[0][1].weight[:3] = torch.tensor([-0.7, 0.0, 1e-9])
    images = example("vgg", 32)
    compressor = Compressor(model, images[:1], images, repair="none")
    small: Any = compressor.build(uniform(compressor, 5))
    path = tmp_path / "model.onnx"
    export_onnx(small, path, images[:1], images)
    conv, norm = small[0][0], small[0][1]
    integers = (conv.weight / conv.weight_scale[:, None, None, None]).round().detach().numpy()
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    held = initializers(path)
    stored, filler = np.split(held["0.0.weight_quantized"], [3], axis=1)
    assert not filler.any()
    widening = 4  # of 5 bits to 7
    np.testing.assert_array_equal(stored[0], -integers[0] * widening)
    np.testing.assert_array_equal(stored[3:], integers[3:] * widening)
    np.testing.assert_allclose(
        held["0.0.weight_scale"][3:] * widening,
        (conv.weight_scale.numpy() * factor)[3:],
        rtol=1e-5,
    )
    assert not stored[1:3].any()  # next to nothing beside their bias
    difference = np.abs(run(path, images) - torch_outputs(small, images))
    assert difference.max() < 0.02 * np.abs(torch_outputs(small, images)).max()


@pytest.mark.parametrize(("found", "setting"), [(True, "1"), (False, "not set")])
def test_exact_kernels_are_asked_for_where_others_saturate(
    found: bool, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(nn.Linear(3, 2), tmp_path / "net.onnx", torch.zeros(1, 3))
    monkeypatch.setattr(runtime, "saturates", lambda: found)
    settings = runtime.Runner(tmp_path / "net.onnx")._session.get_session_options()
    try:
        assert settings.get_session_config_entry("session.x64quantprecision") == setting
    except RuntimeError:
        assert setting == "not set"


def test_residual_networks_stay_integer_throughout(tmp_path: Path) -> None:
    import onnx

    images, compressor = example("resnet8", 24), shared_compressor("resnet8", 24)
    kept = {f"channels:{g.name}": 8 for g in compressor.structure.groups if not g.protected}
    model = compressor.build(Policy({**kept, **dict(uniform(compressor, 8).items())}))
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, images[:1], images)
    assert report.integer_kernels == 8 + 2  # and the two shortcuts
    assert report.top1_agreement > 0.9
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == 1 + 9 + 3 + 2  # last the mean, also without its axes
    assert not {"BatchNormalization", "ReduceMean"} & set(kinds)
    assert kinds.count("GlobalAveragePool") == 1


def test_sums_of_any_width_are_calibrated(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 would fuse a sum of 19 channels with a convolution that is read too."""
    images, compressor = example("resnet8", 24), shared_compressor("resnet8", 24)
    groups = [g for g in compressor.structure.groups if not g.protected]
    kept = {f"channels:{g.name}": min(19, g.channels) for g in groups}
    model = compressor.build(Policy({**kept, **dict(uniform(compressor, 8).items())}))
    report = export_onnx(model, tmp_path / "model.onnx", images[:1], images)
    assert report.top1_agreement > 0.9


@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize("name", ["resnet8", "dense", *slow("vgg", "mobile", "shared")])
def test_channels_that_are_filled_up_change_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def shapes(path: Path) -> list[tuple[int, ...]]:
        graph = onnx.load(path).graph
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
        return sorted(tuple(tensor.dims) for tensor in weights)

    images, compressor = example(name, 24), shared_compressor(name, 24)
    groups = [g for g in compressor.structure.groups if not g.protected]
    kept = {f"channels:{g.name}": min(5, g.channels) for g in groups}
    model = compressor.build(Policy({**kept, **dict(uniform(compressor, 8).items())}))
    export_onnx(model, tmp_path / "filled.onnx", images[:1], images)
    monkeypatch.setattr(
        "automl_compress.deploy.onnx_graph.blocks.block_channels", lambda channels: channels
    )
    export_onnx(model, tmp_path / "plain.onnx", images[:1], images)
    plain, filled = run(tmp_path / "plain.onnx", images), run(tmp_path / "filled.onnx", images)
    np.testing.assert_allclose(filled, plain, atol=1e-6)
    grown = set(shapes(tmp_path / "filled.onnx")) - set(shapes(tmp_path / "plain.onnx"))
    assert grown
    if name == "dense":  # concatenations leave nothing but the input to fill up
        assert grown == {(5, 4, 3, 3)}
    for outputs, *_ in shapes(tmp_path / "filled.onnx") if name == "resnet8" else ():
        assert outputs in (5, 16)  # the last stage ends in a reshape


def test_digits_keep_their_classes_on_integers(tmp_path: Path) -> None:
    from automl_compress.workload import WorkloadConfig, load_workload

    workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 4}))
    calibration = workload.splits.train.draw(128, 0).tensor(workload.normalization)
    images = workload.splits.test.tensor(workload.normalization)
    compressor = Compressor(workload.model, calibration[:1], calibration)
    layers = uniform(compressor, 4)
    kept = {
        f"channels:{g.name}": g.channels * 3 // 4
        for g in compressor.structure.groups
        if not g.protected
    }
    model = compressor.build(Policy({**kept, **dict(layers.items())}))
    report = export_onnx(model, tmp_path / "model.onnx", images[:1], calibration, images=images)
    assert report.images == len(images)
    assert report.top1_agreement >= 0.97
    labels = workload.splits.test.labels
    actual = (run(report.path, images).argmax(1) == labels).mean()
    assert actual >= (torch_outputs(model, images).argmax(1) == labels).mean() - 0.02


def test_files_say_what_they_hold_and_not_where_they_were_made(tmp_path: Path) -> None:
    import onnx

    model, images = built("mobile", seed=1)
    path = tmp_path / "model.onnx"
    report = export_onnx(model, path, images[:1], images)
    content = path.read_bytes()
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    metadata = {item.key: item.value for item in loaded.metadata_props}
    assert json.loads(metadata[METADATA])["weight_bits"] == report.weight_bits
    assert report == OnnxReport(**{**vars(report), "size_bytes": len(content)})
    assert b".py" not in content
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param


class Heads(nn.Module):
    """Two heads on one layer, returned in the form that is asked for."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 3), head(6), nn.Conv2d(6, 4, 1)
        self.form, self.act = form, nn.RReLU()

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.stem(x))
        return self.form(self.one(x), self.two(x))


@pytest.mark.parametrize(
    ("form", "names", "bits"),
    [
        (lambda a, b: {"maps": b, "logits": a}, ["maps", "logits"], 8),
        (lambda a, b: (a, b), ["output_0", "output_1"], None),
    ],
)
def test_several_outputs_are_named_and_compared(
    form: Callable[[Tensor, Tensor], Any], names: list[str], bits: int | None, tmp_path: Path
) -> None:
    images = example("resnet8", 12)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Heads(form).eval()
    genes = {} if bits is None else {f"weight_bits:{layer}": bits for layer in ("stem", "two")}
    network = Compressor(model, images[:1], images).build(Policy({**genes, "channels:stem": 4}))
    path = tmp_path / "model.onnx"
    report = export_onnx(network, path, images[:1], images)
    session = exact_session(path)
    assert [output.name for output in session.get_outputs()] == names
    actual = session.run(None, {"input": images.numpy()})
    given = network(images)
    expected = list(given.values()) if isinstance(given, dict) else list(given)
    for name, one, other in zip(names, actual, expected, strict=True):
        off = np.abs(one - other.detach().numpy()).max() / float(other.detach().abs().max())
        assert report.differences[name] == pytest.approx(off, rel=1e-3, abs=1e-7)
        assert off < (1e-5 if bits is None else 0.1)
    agreement = (actual[0].argmax(1) == expected[0].detach().numpy().argmax(1)).mean()
    assert report.top1_agreement == agreement


def refused(text: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(InputError, match=re.escape(text)) as caught:
        export_onnx(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model, images = built("vgg", seed=1, activations=False)
    refused("pass calibration, or int8=False", model, path, images[:1])
    refused("calibration must hold inputs like the example", model, path, images[:1], images[0])
    refused("calibration must hold inputs, but there are 0", model, path, images[:1], images[:0])
    refused("calibration must be one tensor of inputs, but is [1]", model, path, images[:1], [1])
    refused("example_input must be one tensor of inputs", model, path, images.numpy())
    refused("network on inputs of shape (1, 16, 16) must not fail", model, path, images[:1, :1])
    refused("by its path, but is Vgg(", path=model, model=path, example_input=images[:1])
    refused("must be an nn.Module, but is 'x'", "x", path, images[:1])
    refused("gives a tuple in a dict", network("outputs"), path, images[:1])
    refused("gives a Tensor of 1 axes", Heads(lambda a, b: a.sum(1)), path, images[:1])
    refused("gives a dict in a list", Heads(lambda a, b: [{"boxes": a}]), path, images[:1])
    refused("code fixes", network("cat-function"), path, images[:1])
    refused("folder of the ONNX file must exist", model, tmp_path / "no" / "x.onnx", images[:1])
    assert not list(tmp_path.iterdir())
    path.mkdir()
    refused("must be writable", network("mlp"), path, example("mlp"))
    assert list(tmp_path.iterdir()) == [path]
    assert not list(path.iterdir())


def test_what_exporters_print_and_log_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with onnx_export._quiet():
        print("a graph of a hundred lines", file=sys.stderr)  # of a network that asks for values
        assert not logging.getLogger("torch.fx.experimental").isEnabledFor(logging.WARNING)
    print("the message", file=sys.stderr)
    assert capsys.readouterr().err == "the message\n"


def test_threads_export_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def export(*_: object, **__: object) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
            met.append(True)
        raise ValueError("no program")

    def write(name: str) -> None:
        with pytest.raises(InputError, match="no program"):
            export_onnx(nn.Linear(2, 2), tmp_path / name, torch.ones(1, 2))

    met: list[bool] = []
    monkeypatch.setattr(torch.onnx, "export", export)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, "ab"))
    assert not met


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    refused("pip install automl-compress[onnx]", network("vgg"), path, example("vgg"))


class Pyramid(nn.Module):
    """Two maps of different sizes that are summed, as in a feature pyramid."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, channels)
        self.down = nn.Sequential(nn.MaxPool2d(2), conv_bn(channels, channels))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge, self.head = conv_bn(channels, channels), head(channels)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.stem(x)
        result: Tensor = self.head(self.merge(fine + self.upsample(self.down(fine))))
        return result


def test_what_only_moves_values_moves_integers(tmp_path: Path) -> None:
    """Input channels that are filled up, and maps that are enlarged."""
    import onnx

    images = example("vgg", 32)
    compressor = Compressor(lively(Pyramid()).eval(), images[:1], images, repair="none")
    path = tmp_path / "model.onnx"
    for bits in (None, 8):
        model = compressor.build(uniform(compressor, 8, bits))
        export_onnx(model, path, images[:1], images)
        graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
        kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        moved = [node for node in graph.node if node.op_type in ("Pad", "Resize")]
        assert sorted(node.op_type for node in moved) == ["Pad", "Resize"]
        enlarged = next(node for node in moved if node.op_type == "Resize")
        integers = [enlarged] if bits else moved
        for node in integers:
            for name in (node.input[0], node.output[0]):
                assert kinds[name] == onnx.TensorProto.UINT8
        stored = initializers(path)["stem.0.weight_quantized"]
        assert stored.shape[1] == 4
        assert not stored[:, 3].any()
        expected, actual = torch_outputs(model, images), run(path, images)
        assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


def test_an_input_that_others_read_too_is_not_filled_up(tmp_path: Path) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = conv_bn(3, 3), head(3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.conv(x) + x)
            return result

    images = example("vgg", 16)
    compressor = Compressor(lively(Around()).eval(), images[:1], images, repair="none")
    model = compressor.build(uniform(compressor, 8))
    export_onnx(model, tmp_path / "model.onnx", images[:1], images)
    assert initializers(tmp_path / "model.onnx")["conv.0.weight_quantized"].shape[1] == 3


def test_graphs_become_as_simple_as_onnxscript_makes_them() -> None:
    small = nn.Sequential(conv_bn(3, 4), conv_bn(4, 4), head(4)).eval()
    program = onnx_export._exported(small, example("vgg"), ["y"])
    model = program.model.clone()
    program.optimize()
    simplify(model)
    found, wanted = ([node.op_type for node in m.graph] for m in (model, program.model))
    assert found == wanted
    assert "BatchNormalization" not in found
