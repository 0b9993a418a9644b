"""Packed files: what they hold, how large they are, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from compress_networks import (
    NETWORKS,
    Positions,
    example,
    flatten,
    network,
    random_policy,
    shared_compressor,
)
from torch import Tensor, nn

from automl_compress.compress import REPAIRS, Compressor, compress
from automl_compress.compress.fold import fold_norms, foldable_norms
from automl_compress.deploy import load_packed, read_layout, save_packed
from automl_compress.deploy.layout_bytes import _PHRASES, read_varint, varint
from automl_compress.deploy.state import load_state, save_state
from automl_compress.errors import DeployError, InputError, WorkloadError
from automl_compress.space import Policy
from automl_compress.workload import build_model

OVERHEAD = 720
"""Bytes that a file of a test network may add to what is promised."""
OVERHEAD_BESIDE_ORIGINAL = 240
"""The same where the original network is known when the file is written."""


def built_network(name: str, seed: int) -> Any:
    """A compressor, a random policy of its network and the network it builds."""
    compressor = shared_compressor(name, 12)
    policy = random_policy(
        compressor.structure, np.random.default_rng(seed), activations=name != "words"
    )
    return compressor, policy, compressor.build(policy)


def bits_of(output: Any) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in flatten(output)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loaded_network_gives_the_same_outputs_bit_for_bit(
    name: str, seed: int, tmp_path: Path
) -> None:
    compressor, policy, built = built_network(name, seed)
    path = tmp_path / "net.packed"
    size = save_packed(built, path, policy)
    assert size == path.stat().st_size
    loaded = load_packed(path, network(name, 7))
    images = example(name, 5)
    with torch.no_grad():  # torch's fused attention runs where nothing is trained
        assert bits_of(loaded(images)) == bits_of(built(images))
    assert repr(loaded) == repr(built)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    expected = {n: t for n, t in built.state_dict().items() if "num_batches" not in n}
    actual = {n: t for n, t in loaded.state_dict().items() if "num_batches" not in n}
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype
        assert actual[key].stride() == tensor.stride()
        assert torch.equal(actual[key], tensor)
    assert read_layout(path).policy == policy
    assert size <= compressor.cost(policy)["size_bytes"] + OVERHEAD


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_original_tells_is_left_out(name: str, tmp_path: Path) -> None:
    compressor, policy, built = built_network(name, 1)
    whole, small = tmp_path / "whole", tmp_path / "small"
    save_packed(built, whole, policy)
    size = save_packed(built, small, policy, original=network(name, 5))
    assert size <= compressor.cost(policy)["size_bytes"] + OVERHEAD_BESIDE_ORIGINAL
    loaded, images = load_packed(small, network(name, 7)), example(name, 5)
    with torch.no_grad():
        assert bits_of(loaded(images)) == bits_of(built(images))
    assert read_layout(small, network(name, 7)) == read_layout(whole)
    save_packed(loaded, tmp_path / "again", policy, original=network(name, 7))
    assert (tmp_path / "again").read_bytes() == small.read_bytes()


@pytest.mark.parametrize("kind", ["mobile", "mlp"])
def test_a_network_that_is_no_form_of_its_original_is_written_out(
    kind: str, tmp_path: Path
) -> None:
    _, policy, built = built_network("resnet8", 0)
    save_packed(built, tmp_path / "net", policy, original=network(kind))
    assert read_layout(tmp_path / "net").policy == policy
    loaded = load_packed(tmp_path / "net", network("resnet8", 7))
    assert bits_of(loaded(example("resnet8", 5))) == bits_of(built(example("resnet8", 5)))


def test_a_small_file_is_for_its_own_network(tmp_path: Path) -> None:
    _, policy, built = built_network("resnet8", 0)
    save_packed(built, tmp_path / "net", policy, original=network("resnet8"))
    for other in ("mobile", "vgg", "mlp"):
        assert "was made from another" in refused(tmp_path / "net", network(other))
    with pytest.raises(DeployError, match="names none; pass model=NETWORK"):
        read_layout(tmp_path / "net")


def test_small_files_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    _, policy, built = built_network("resnet8", 0)
    save_packed(built, tmp_path / "net", policy, original=network("resnet8"))
    content = read_data(tmp_path / "net")
    head, start = read_varint(content, 4)
    for place in range(0, 60, 4):
        data = bytearray(content)
        data[start + place % head] ^= 0x55
        write_data(tmp_path / "net", bytes(data[4:]))
        refused(tmp_path / "net", network("resnet8"))


@pytest.mark.parametrize("name", ["resnet8", "mobile", "outputs"])
def test_loading_and_saving_again_gives_the_same_file(name: str, tmp_path: Path) -> None:
    _, policy, built = built_network(name, 3)
    save_packed(
        built, tmp_path / "one", policy, architecture="resnet20", arguments={"num_classes": 5}
    )
    loaded = load_packed(tmp_path / "one", network(name, 7))
    save_packed(
        loaded, tmp_path / "two", policy, architecture="resnet20", arguments={"num_classes": 5}
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_all_layers_at_few_bits_and_one_channel(bits: int, tmp_path: Path) -> None:
    images, compressor = example("resnet8", 12), shared_compressor("resnet8", 12)
    structure = compressor.structure
    genes: dict[str, float] = {f"weight_bits:{layer.name}": bits for layer in structure.layers}
    genes |= {f"channels:{group.name}": 1 for group in structure.groups if not group.protected}
    policy = Policy(genes)
    built = compressor.build(policy)
    save_packed(built, tmp_path / "net", policy)
    loaded = load_packed(tmp_path / "net", network("resnet8", 7))
    assert bits_of(loaded(images)) == bits_of(built(images))


def test_a_shipped_network_loads_in_a_fresh_process_with_one_call(tmp_path: Path) -> None:
    model = build_model("resnet20", {"num_classes": 7}, seed=3)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(model, images[:1], images)
    policy = random_policy(compressor.structure, np.random.default_rng(0), True)
    built = compressor.build(policy)
    path = tmp_path / "net.packed"
    save_packed(built, path, policy, architecture="resnet20", arguments={"num_classes": 7})
    torch.save((images, built(images).detach()), tmp_path / "expected.pt")
    program = (
        "import sys, torch, automl_compress as ac\n"
        "images, expected = torch.load(sys.argv[2])\n"
        "assert torch.equal(ac.load_packed(sys.argv[1])(images), expected)\n"
        "assert not {'ray', 'pymoo', 'pandas', 'yaml', 'sklearn'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(path), str(tmp_path / "expected.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "shape"), [("digits_cnn", (1, 8, 8)), ("resnet20", (3, 32, 32))])
def test_size_on_disk_is_what_the_cost_model_promises(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = build_model(name, {"num_classes": 10})
    compressor = Compressor(model, torch.zeros(1, *shape))
    rng = np.random.default_rng(0)
    for _ in range(4):
        policy = random_policy(compressor.structure, rng, False)
        built = compressor.build(policy)
        size = save_packed(built, tmp_path / "net", policy, architecture=name)
        promised = compressor.cost(policy)["size_bytes"]
        assert promised < size < promised + max(0.02 * promised, 160)
        assert read_layout(tmp_path / "net").policy == policy


class Sparse(nn.Module):
    """Convolutions with zero kernels, one of them in float, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3)
        self.two = nn.Conv2d(16, 24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x).relu()).mean((2, 3)))


def sparse_network(share: float) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sparse().eval()
        for layer in (model.one, model.two):
            with torch.no_grad():
                gone = torch.rand(layer.weight.shape[:2]) < share
                layer.weight[gone] = 0
    return model


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_zero_kernels_are_left_out_where_that_is_smaller(share: float, tmp_path: Path) -> None:
    model, x = sparse_network(share), torch.randn(2, 3, 9, 9)
    policy = Policy({"weight_bits:two": 2})
    built = compress(model, policy, x)
    size = save_packed(built, tmp_path / "net")
    loaded: Any = load_packed(tmp_path / "net", Sparse())
    for name, tensor in built.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert bits_of(loaded(x)) == bits_of(built(x))
    stored = dict(read_layout(tmp_path / "net").flat())
    dense = save_packed(compress(sparse_network(0), policy, x), tmp_path / "dense")
    for name, bits in (("one.weight", 32), ("two.weight", 2)):
        weight = built.state_dict()[name]
        present = int((weight != 0).flatten(2).any(2).sum())
        count = weight.shape[0] * weight.shape[1]
        saved = (9 * bits * (count - present) - count) / 8
        assert stored[name].kernels == (present if saved > 0 else None)
        dense -= max(0, int(saved))
    assert abs(size - dense) < 80  # layouts differ
    assert stored["head.weight"].kernels is None


def test_negative_zeros_of_floats_are_kept(tmp_path: Path) -> None:
    model: Any = sparse_network(0.5)
    with torch.no_grad():
        model.two.weight[:4] = -0.0
    save_packed(model, tmp_path / "net")
    loaded: Any = load_packed(tmp_path / "net", Sparse())
    assert bits_of(loaded.two.weight) == bits_of(model.two.weight)


def test_other_types_and_memory_formats_are_kept(tmp_path: Path) -> None:
    model = sparse_network(0.2).to(memory_format=torch.channels_last)
    model.register_buffer("table", torch.arange(6, dtype=torch.int64).reshape(2, 3))
    model.register_buffer("flag", torch.tensor(True))
    model.register_buffer("fine", torch.randn(3).to(torch.bfloat16))
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    other = Sparse()
    for name in ("table", "flag", "fine"):
        other.register_buffer(name, torch.zeros_like(getattr(model, name)))
    other.register_buffer("scratch", torch.ones(2), persistent=False)
    save_packed(model, tmp_path / "net")
    loaded: Any = load_packed(tmp_path / "net", other)
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert loaded.state_dict()[name].stride() == tensor.stride()
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert torch.equal(loaded.scratch, torch.ones(2))


@pytest.mark.parametrize("channels", [5, 11, 12])
def test_what_is_left_of_recomputed_buffers(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Positions(), example("tokens", 4)
    policy = Policy({"channels:patch": channels, "weight_bits:mlp.0": 4})
    compressor = Compressor(model, images[:1], images)
    built = compressor.build(policy)
    for name, original in (("whole", None), ("small", model)):
        size = save_packed(built, tmp_path / name, policy, original=original)
        least = compressor.cost(policy)["size_bytes"]
        assert 0 < size - least <= (OVERHEAD_BESIDE_ORIGINAL if original else OVERHEAD)
        loaded = load_packed(tmp_path / name, Positions())
        assert bits_of(loaded(images)) == bits_of(built(images))
        assert list(loaded.state_dict()) == list(built.state_dict())
    assert read_layout(tmp_path / "small", Positions()) == read_layout(tmp_path / "whole")
    save_state(built, tmp_path / "state", policy)
    assert bits_of(load_state(tmp_path / "state", Positions())(images)) == bits_of(built(images))


def test_what_is_left_of_recomputed_buffers_may_lack_kernels(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
            mask = (torch.arange(8) % 4 > 1).float()[None, :, None, None]
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x) * self.mask)

    images = torch.randn(2, 3, 6, 6)
    built = compress(Masked(), Policy({"channels:stem": 5}), images[:1])
    save_packed(built, tmp_path / "net", original=Masked())
    loaded = load_packed(tmp_path / "net", Masked())
    assert read_layout(tmp_path / "net", Masked()).tensors[""]["mask"].kernels is not None
    assert bits_of(loaded(images)) == bits_of(built(images))


def test_cut_modules_without_tensors(tmp_path: Path) -> None:
    def bare() -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 12), nn.LayerNorm(12, elementwise_affine=False), nn.ReLU(),
            nn.Linear(12, 8), nn.BatchNorm1d(8, affine=False, track_running_stats=False),
            nn.Linear(8, 3),
        ).eval()  # fmt: skip

    x = torch.randn(5, 6)
    built = compress(bare(), Policy({"channels:0": 5, "channels:3": 4}), x[:2])
    save_packed(built, tmp_path / "net")
    loaded = load_packed(tmp_path / "net", bare())
    assert torch.equal(loaded(x), built(x))
    assert repr(loaded) == repr(built)


@pytest.mark.parametrize("name", ["resnet8", "mobile"])
def test_networks_whose_batchnorm_is_folded(name: str, tmp_path: Path) -> None:
    compressor, policy, built = built_network(name, 1)
    fold_norms(built, foldable_norms(compressor.model, example(name)))
    save_packed(built, tmp_path / "net", policy)
    loaded = load_packed(tmp_path / "net", network(name, 7))
    assert bits_of(loaded(example(name, 5))) == bits_of(built(example(name, 5)))
    assert repr(loaded) == repr(built)


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("name", ["resnet8", "vgg", "shared", "mlp"])
def test_networks_after_any_repair(name: str, repair: Any, tmp_path: Path) -> None:
    images = example(name, 12)
    compressor = shared_compressor(name, 12, repair)
    policy = random_policy(compressor.structure, np.random.default_rng(2), True)
    built = compressor.build(policy)
    save_packed(built, tmp_path / "net", policy)
    loaded = load_packed(tmp_path / "net", network(name, 7))
    assert bits_of(loaded(images)) == bits_of(built(images))


def test_a_trained_network_in_training_mode_is_stored_as_in_evaluation(tmp_path: Path) -> None:
    images = example("resnet8", 8)
    built = compress(network("resnet8"), Policy({"channels:conv1": 9}), images[:1]).train()
    built(images).sum().backward()
    save_packed(built, tmp_path / "net")
    assert built.training
    loaded = load_packed(tmp_path / "net", network("resnet8", 7))
    assert bits_of(loaded(images)) == bits_of(built.eval()(images))


@pytest.fixture(scope="module")
def packed_content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "net.packed"
    _, policy, built = built_network("resnet8", 0)
    save_packed(built, path, policy)
    return path.read_bytes()


@pytest.fixture
def packed(packed_content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "net.packed"
    path.write_bytes(packed_content)
    return path


def refused(path: Path, model: Any, error: type[InputError] = DeployError) -> str:
    with pytest.raises(error) as caught:
        load_packed(path, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_data(path: Path) -> bytes:
    with safetensors.safe_open(path, framework="pt") as file:
        (name,) = file.keys()
        content: bytes = file.get_tensor(name).numpy().tobytes()
        return content


def write_data(path: Path, data: bytes, name: str = "packed.3") -> None:
    """Write a packed file's data with a checksum that fits."""
    whole = bytearray(zlib.crc32(data).to_bytes(4, "little") + data)
    path.write_bytes(
        safetensors.torch.save({name: torch.frombuffer(whole, dtype=torch.uint8)}, None)
    )


def change_layout(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a packed file's layout, which is written out."""
    data = read_data(path)
    length, start = read_varint(data, 4)
    packed = zlib.decompressobj(-15, zdict=_PHRASES).decompress(data[start : start + length])
    assert packed[0] == 0
    layout = json.loads(packed[1:])
    change(layout)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=_PHRASES)
    head = packer.compress(b"\0" + json.dumps(layout).encode()) + packer.flush()
    write_data(path, varint(len(head)) + head + data[start + length :])


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_files_are_refused(kept: int, packed: Path) -> None:
    packed.write_bytes(packed.read_bytes()[:kept])
    assert "export it again" in refused(packed, network("resnet8"))


def test_damaged_files_are_refused(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-5] ^= 1
    packed.write_bytes(content)
    assert "checksum" in refused(packed, network("resnet8"))


@pytest.mark.parametrize("content", [b"PK\x03\x04 a zip file", b"", b"\0" * 40, b"{}" * 30])
def test_other_files_are_refused(content: bytes, packed: Path) -> None:
    packed.write_bytes(content)
    assert "export it again" in refused(packed, network("resnet8"))


def test_missing_files_folders_and_other_tensors_are_refused(packed: Path) -> None:
    model = network("resnet8")
    assert "does not" in refused(packed.with_name("none"), model)
    refused(packed.parent, model)
    for names in (["data"], ["conv.1", "conv.2"]):
        safetensors.torch.save_file({name: torch.zeros(3) for name in names}, packed)
        assert "must be 'packed', but is 'unknown'" in refused(packed, model)
    save_state(model, packed)
    assert "must be 'packed', but is 'torch'" in refused(packed, model)


def test_newer_and_older_versions_are_refused(packed: Path) -> None:
    data = read_data(packed)
    write_data(packed, data[4:], "packed.4")
    assert "at most 3, but is 4; use a newer automl-compress" in refused(packed, network("resnet8"))
    words = {"automl_compress": json.dumps({"format": "packed", "version": 2})}
    packed.write_bytes(safetensors.torch.save({"data": torch.zeros(3)}, words))
    assert "must be 3, but is 2; export it again" in refused(packed, network("resnet8"))


@pytest.mark.parametrize(
    "change",
    [
        lambda layout: layout.clear(),
        lambda layout: layout.pop("tensors"),
        lambda layout: layout["tensors"].pop("conv1"),
        lambda layout: layout["tensors"]["conv1"].update(weight=[1000000, 1000000, 3, 3]),
        lambda layout: layout["tensors"]["conv1"].update(weight={"shape": [2], "bits": 99}),
        lambda layout: layout["tensors"]["conv1"].update(weight={"shape": [2], "dtype": "load"}),
        lambda layout: layout["tensors"]["conv1"].update(weight={"shap": [2]}),
        lambda layout: layout["tensors"].update(conv9={"weight": [1]}),
        lambda layout: layout.update(policy={"nothing": 3}),
        lambda layout: layout.update(maps={"x": 3}),
        lambda layout: layout.update(inputs={"conv1": [8]}),
        lambda layout: layout.update(inputs={"conv1": [8, True]}),
        lambda layout: layout.update(inputs={"conv1": [4, 16]}),
        lambda layout: layout.update(inputs={"conv1": [9, 0]}),
        lambda layout: layout.update(architecture=3),
        lambda layout: layout.update(architecture=["resnet20"]),
    ],
)
def test_layouts_that_make_no_sense_are_refused(change: Callable[[Any], Any], packed: Path) -> None:
    change_layout(packed, change)
    assert "export it again" in refused(packed, network("resnet8"))


@pytest.mark.parametrize("shape", [[1, 1, 10**6, 10**6], [8, 3, 3, 4], [8, 3, 3, 3, 1]])
def test_kernels_that_take_no_bytes_are_no_larger_than_the_original_s(
    shape: list[int], packed: Path
) -> None:
    weight = {"shape": shape, "kernels": 0}
    change_layout(packed, lambda layout: layout["tensors"]["conv1"].update(weight=weight))
    assert "network it was made from" in refused(packed, network("resnet8"))


def test_layouts_that_would_take_all_memory_are_refused(packed: Path) -> None:
    data = read_data(packed)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_PHRASES)
    head = packer.compress(bytes(1) + b" " * 2**24 + b"{}") + packer.flush()
    write_data(packed, varint(len(head)) + head + data[4:])
    assert "16,777,217th byte" in refused(packed, network("resnet8"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"packed.3": torch.zeros(8, dtype=torch.bfloat16)}, "no row of bytes"),
        ({"packed.3": torch.zeros(8, 2, dtype=torch.uint8)}, "no row of bytes"),
        ({"a": torch.zeros(8, dtype=torch.uint8), "b": torch.zeros(1)}, "no row of bytes"),
        ({}, "no row of bytes"),
        ({f"packed.{'9' * 5000}": torch.zeros(8, dtype=torch.uint8)}, "but is 'unknown'"),
    ],
)
def test_files_that_hold_no_row_of_bytes_are_refused(
    tensors: dict[str, Tensor], said: str, packed: Path
) -> None:
    words = {"automl_compress": json.dumps({"format": "packed", "version": 3})}
    named = any(name.startswith("packed") for name in tensors)
    packed.write_bytes(safetensors.torch.save(tensors, None if named else words))
    assert said in refused(packed, network("resnet8"))


@pytest.mark.parametrize("model", [nn.Linear, 3, b"net:make"])
def test_what_is_no_network_is_refused(model: Any, packed: Path) -> None:
    assert "'model' must be a network, the name of its factory" in refused(packed, model)


@pytest.mark.parametrize("other", ["mobile", "vgg", "mlp"])
def test_files_for_another_network_are_refused(other: str, packed: Path) -> None:
    assert "network it was made from" in refused(packed, network(other))


def test_networks_of_other_sizes_are_refused(packed: Path) -> None:
    for other in ({"blocks": 2}, {"blocks": 1, "num_classes": 9}):
        from automl_compress.workload.resnet_cifar import CifarResNet

        assert "network it was made from" in refused(packed, CifarResNet(**other))


def test_a_file_without_a_name_needs_the_network(packed: Path) -> None:
    assert "names none; pass model=NETWORK" in refused(packed, None)


def test_a_file_does_not_choose_what_code_is_run(tmp_path: Path) -> None:
    (tmp_path / "trap.py").write_text("open('sprung', 'w')\n")
    _, policy, built = built_network("resnet8", 0)
    save_packed(built, tmp_path / "net", policy, architecture="trap:spring")
    assert "pass model='trap:spring'" in refused(tmp_path / "net", None)
    assert not (tmp_path / "sprung").exists()


def test_a_factory_is_run_when_the_caller_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ownnet.py").write_text(
        "from torch import nn\n"
        "def build(width):\n"
        "    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))\n"
    )
    model = build_model("ownnet:build", {"width": 10})
    x = torch.randn(4, 6)
    built = compress(model, Policy({"channels:0": 6, "weight_bits:2": 3}), x)
    arguments = {"width": 10}
    save_packed(built, "net", architecture="ownnet:build", arguments=arguments)
    assert torch.equal(load_packed("net", "ownnet:build")(x), built(x))
    assert "nowhere" in refused(Path("net"), "nowhere:build", WorkloadError)


@pytest.mark.parametrize(
    ("genes", "said"),
    [
        ({"channels:layer9": 3}, "no group 'layer9'"),
        ({"weight_bits:conv1": 3}, "'weight_bits:conv1' is 3 where the network has 4"),
        ({"weight_bits:linear": 3}, "where the network has none"),
        ({"activation_bits:conv1": 4}, "where the network has none"),
    ],
)
def test_policies_of_other_networks_are_refused(
    genes: dict[str, float], said: str, tmp_path: Path
) -> None:
    built = compress(network("resnet8"), Policy({"weight_bits:conv1": 4}), example("resnet8"))
    with pytest.raises(DeployError, match="give the policy the network was built by") as caught:
        save_packed(built, tmp_path / "net", Policy(genes))
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_weights_off_their_grid_are_refused(tmp_path: Path) -> None:
    built: Any = compress(network("resnet8"), Policy({"weight_bits:conv1": 4}), example("resnet8"))
    with torch.no_grad():
        built.conv1.weight += 0.01
    with pytest.raises(DeployError, match="those of 'conv1' are not"):
        save_packed(built, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = packed.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DeployError, match="No space left"):
        save_packed(network("resnet8"), packed)
    assert packed.read_bytes() == before
    assert [path.name for path in packed.parent.iterdir()] == ["net.packed"]
    monkeypatch.undo()
    with pytest.raises(DeployError, match="choose another place"):
        save_packed(network("resnet8"), packed.parent)


def test_networks_of_unusual_kinds_are_stored(tmp_path: Path) -> None:
    """A wrapper that has no length, and a network without values."""
    _, policy, built = built_network("vgg", 0)
    plain = save_packed(built, tmp_path / "plain", policy, original=network("vgg"))
    wrapped = torch.compile(network("vgg"), backend="eager")
    assert save_packed(built, tmp_path / "wrapped", policy, original=wrapped) == plain  # type: ignore[arg-type]
    save_packed(nn.Flatten(), tmp_path / "bare", original=nn.Flatten())
    assert type(load_packed(tmp_path / "bare", nn.Flatten())) is nn.Flatten
