"""State-dict files: plain tensors that any program reads, and the network they rebuild."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from compress_networks import example, flatten, network, random_policy

from automl_compress.compress import Compressor, compress
from automl_compress.deploy.formats import FORMATS, Source, export_format
from automl_compress.deploy.packed import load_packed, save_packed
from automl_compress.deploy.state import load_state, save_state
from automl_compress.errors import DeployError
from automl_compress.space import Policy


@pytest.mark.parametrize("name", ["resnet8", "mobile", "layer-scale", "aliased"])
def test_tensors_stand_under_their_names_and_rebuild_the_network(name: str, tmp_path: Path) -> None:
    images = example(name, 12)
    compressor = Compressor(network(name), images[:1], images)
    policy = random_policy(compressor.structure, np.random.default_rng(0), True)
    built = compressor.build(policy)
    path = tmp_path / "net.safetensors"
    assert save_state(built, path, policy) == path.stat().st_size
    stored = safetensors.torch.load_file(path)
    names = {name for name, _ in (*built.named_parameters(), *built.named_buffers())}
    assert set(stored) == {name for name in names if "num_batches" not in name}
    for key, tensor in stored.items():
        assert torch.equal(tensor, built.state_dict()[key])
    loaded = load_state(path, network(name, 7))
    with torch.no_grad():
        for one, two in zip(flatten(loaded(images)), flatten(built(images)), strict=True):
            assert torch.equal(one, two)


def test_the_two_kinds_of_files_are_told_apart(tmp_path: Path) -> None:
    save_state(network("resnet8"), tmp_path / "state")
    save_packed(network("resnet8"), tmp_path / "packed")
    with pytest.raises(DeployError, match="must be 'packed', but is 'torch'"):
        load_packed(tmp_path / "state", network("resnet8"))
    with pytest.raises(DeployError, match="must be 'torch', but is 'packed'"):
        load_state(tmp_path / "packed", network("resnet8"))
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content[:-1])
    with pytest.raises(DeployError, match="export it again"):
        load_state(tmp_path / "state", network("resnet8"))


@pytest.mark.parametrize("kind", [torch.int32, torch.float16])
def test_tensors_of_another_type_than_the_layout_s_are_refused(
    kind: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    save_state(network("resnet8"), path)
    with safetensors.safe_open(path, framework="pt") as file:
        words = file.metadata()
    tensors = safetensors.torch.load_file(path)
    tensors["linear.bias"] = tensors["linear.bias"].to(kind)
    safetensors.torch.save_file(tensors, path, words)
    with pytest.raises(DeployError, match=f"'linear.bias' is {kind}, not torch.float32"):
        load_state(path, network("resnet8"))


def test_words_that_are_nested_too_deep_are_refused(tmp_path: Path) -> None:
    words = {"automl_compress": "[" * 100_000}
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "state", words)
    with pytest.raises(DeployError, match="its metadata are no JSON"):
        load_state(tmp_path / "state", network("resnet8"))


def test_strides_are_kept(tmp_path: Path) -> None:
    model: Any = network("resnet8").to(memory_format=torch.channels_last)
    save_state(model, tmp_path / "state")
    loaded: Any = load_state(tmp_path / "state", network("resnet8", 7))
    assert loaded.conv1.weight.stride() == model.conv1.weight.stride()
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"onnx"}))
def test_every_format_gives_back_what_it_was_given(name: str, tmp_path: Path) -> None:
    model, images = network("resnet8"), example("resnet8", 4)
    policy = Policy({"channels:conv1": 5, "weight_bits:conv1": 4})
    built = compress(model, policy, images[:1])
    source = Source(policy, model, images[:1], "own:net", {}, images, images)
    chosen = export_format(name)
    path = tmp_path / "net"
    assert chosen.save(built, path, source).size_bytes == path.stat().st_size
    with torch.no_grad():
        torch.testing.assert_close(chosen.load(path, model)(images), built(images))


def test_an_onnx_file_runs_as_the_network_does(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, images = network("resnet8"), example("resnet8", 40)
    built = compress(model, Policy({"channels:conv1": 5, "weight_bits:conv1": 8}), images[:1])
    source = Source(Policy({}), model, images[:1], "own:net", {}, images, images)
    path = tmp_path / "deep" / "net.onnx"
    written = export_format("onnx").save(built, path, source)
    assert written.size_bytes == path.stat().st_size
    assert "1 layers hold integers, 8 bits on the INT8 grid" in written.remark
    assert "and only they, need session.x64quantprecision=1" in written.remark
    found = export_format("onnx").load(path, model)(images)
    with torch.no_grad():
        expected = built(images)
    assert "on 40 test examples: top-1 agreement" in written.remark
    share = (found.argmax(1) == expected.argmax(1)).double().mean()
    assert f"top-1 agreement {float(share):.2%}" in written.remark
    difference = float((found - expected).abs().max())
    assert f"largest difference {difference:.3g} of" in written.remark


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(DeployError, match="did you mean 'packed'"):
        export_format("packd")
