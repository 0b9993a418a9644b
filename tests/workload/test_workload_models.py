from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision import models

from automl_compress.workload import (
    MODELS,
    DataConfig,
    Normalization,
    PadShortcut,
    Splits,
    WorkloadConfig,
    build_model,
    fixed_parameters,
    load_splits,
    load_workload,
)
from automl_compress.workload.detection import EXTRA
from automl_compress.workload.digits_training import DEFAULT_EPOCHS, train_digits
from automl_compress.workload.synchronized import make_local

UserModule = Callable[[str], str]
Refused = Callable[..., None]

TRAIN = """
import sys, torch
from automl_compress.workload import *
torch.set_num_threads(int(sys.argv[1]))
workload = load_workload(WorkloadConfig("digits_cnn", DataConfig.from_name("digits"), epochs=1))
print(workload.identity)
"""


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_splits(DataConfig.from_name("digits"))


def _train(digits: Splits, epochs: int, seed: int = 0) -> nn.Module:
    model = build_model("digits_cnn", {}, seed).requires_grad_(True)
    train_digits(model, digits.train, Normalization.unit(1), epochs=epochs, seed=seed)
    return model


def _accuracy(model: nn.Module, digits: Splits) -> float:
    with torch.no_grad():
        best = model(digits.test.tensor(Normalization.unit(1))).argmax(1).numpy()
    return float((best == digits.test.labels).mean())


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_give_what_their_task_asks_for(name: str) -> None:
    model = build_model(name, {"num_classes": 7})
    outputs = model(torch.zeros(2, *MODELS[name].input_shape))
    if MODELS[name].task == "detection":
        assert outputs.shape[:2] == (2, 7 + EXTRA)
    else:
        assert outputs.shape == (2, 7)
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million.
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        # The convolutions of Simonyan & Zisserman 2015, D and E: 14,710,464 and 20,018,880.
        ("vgg16_bn", 14_710_464 + 2 * 4_224 + 5_130),
        ("vgg19_bn", 20_018_880 + 2 * 5_504 + 5_130),
        # Huang et al. 2017, table 2: 1.0 million.
        ("densenet40", 1_019_722),
        ("digits_cnn", 48_818),
    ],
)
def test_sizes(name: str, parameters: int) -> None:
    model = build_model(name, {})
    assert sum(value.numel() for value in model.parameters()) == parameters


def test_mobilenet_has_the_weights_of_the_paper_s_at_other_strides() -> None:
    ours, theirs = build_model("mobilenet_v2", {}), models.mobilenet_v2(num_classes=10)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


def test_resnet_names_its_parts_as_the_common_port_does() -> None:
    model = build_model("resnet20", {})
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    parts = {"conv1", "bn1", "conv2", "bn2"}
    blocks = {f"layer{s}.{b}.{part}" for s in (1, 2, 3) for b in range(3) for part in parts}
    assert names == blocks | {"conv1", "bn1", "linear"}
    shortcuts = [one for one in model.modules() if isinstance(one, PadShortcut)]
    assert [(one.in_channels, one.out_channels, one.offset) for one in shortcuts] == [
        (16, 32, 8),
        (32, 64, 16),
    ]


@given(
    channels=st.integers(1, 5),
    more=st.integers(0, 6),
    stride=st.integers(1, 3),
    size=st.integers(1, 7),
)
def test_pad_shortcut_is_subsampling_between_zeros(
    channels: int, more: int, stride: int, size: int
) -> None:
    x = torch.rand(2, channels, size, size) + 1
    shortcut = PadShortcut(channels, channels + more, stride)
    got = shortcut(x)
    kept = slice(shortcut.offset, shortcut.offset + channels)
    assert torch.equal(got[:, kept], x[:, :, ::stride, ::stride])
    got[:, kept] = 0
    assert got.shape[1] == channels + more
    assert not got.any()
    assert not shortcut.state_dict()
    if more % 2 == 0:
        want = functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more // 2, more // 2))
        assert torch.equal(shortcut(x), want)


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (build_model("digits_cnn", {}, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.get_parameter("conv1.weight") for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_digits_network_learns(
    digits: Splits, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the recipe's own number of epochs, which the README's example trains for, too."""
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(shared_cache))
    assert _accuracy(_train(digits, epochs=DEFAULT_EPOCHS), digits) >= 0.97


def test_training_leaves_the_global_state_alone_and_is_cached(digits: Splits, cache: Path) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        model = _train(digits, epochs=3)
    assert _accuracy(model, digits) > 0.8
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not model.training

    [file] = cache.glob("digits_cnn-*.safetensors")
    stored = file.stat()
    again = _train(digits, epochs=3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert file.stat().st_mtime_ns == stored.st_mtime_ns


def test_damaged_cached_weights_are_made_again(digits: Splits, cache: Path) -> None:
    first = _train(digits, epochs=1)
    [file] = cache.glob("digits_cnn-*.safetensors")
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    again = _train(digits, epochs=1)
    assert file.read_bytes() == content
    assert torch.equal(first.get_parameter("linear.bias"), again.get_parameter("linear.bias"))


def test_training_is_the_same_in_another_process_with_other_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = load_workload(WorkloadConfig("digits_cnn", DataConfig.from_name("digits"), epochs=1))
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path / "other"))
    threads = 1 if torch.get_num_threads() > 1 else 2
    there = subprocess.run(
        [sys.executable, "-c", TRAIN, str(threads)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
        text=True,
    )
    assert there.stdout.strip() == here.identity


def test_unknown_names_are_refused(refused: Refused) -> None:
    refused(lambda: build_model("resnet65", {}), "resnet20, resnet32", "did you mean 'resnet56'?")
    refused(lambda: build_model("yolo", {}), "'package.module:factory'", "correct it")


def test_user_factories(user_module: UserModule, refused: Refused) -> None:
    name = user_module(
        "from torch import nn\n"
        "def net(width=3): return nn.Linear(width, 2)\n"
        "def text(): return 'net'\n"
        "def fails(): raise RuntimeError('no\\nluck')\n"
    )
    model = build_model(f"{name}:net", {"width": 5})
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5
    assert not model.weight.requires_grad
    refused(lambda: build_model(f"{name}:net", {"depth": 5}), "TypeError", "'depth'")
    refused(lambda: build_model(f"{name}:text", {}), "torch.nn.Module", "type str")
    refused(lambda: build_model(f"{name}:fails", {}), "RuntimeError: no luck")


def test_a_network_that_is_frozen_as_a_whole_has_no_part_that_no_training_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_parameter("count", nn.Parameter(torch.tensor(1), requires_grad=False))
    assert not fixed_parameters(model)
    model[0].bias.requires_grad_(False)
    assert fixed_parameters(model) == {"0.bias"}
    assert not fixed_parameters(model.requires_grad_(False))


@pytest.mark.parametrize(
    ("made", "texts"),
    [
        ("nn.LazyLinear(3)", ("'weight' has none yet", "call the network on an input")),
        ("nn.Linear(4, 3).double()", ("must be float32", "'weight' is torch.float64", ".float()")),
        ("nn.Linear(4, 3).bfloat16()", ("'weight' is torch.bfloat16",)),
        ("torch.jit.script(nn.Linear(4, 3))", ("its own Python code", "RecursiveScriptModule")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_networks_that_cannot_be_worked_with_are_refused(
    made: str, texts: tuple[str, ...], user_module: UserModule, refused: Refused
) -> None:
    name = user_module(f"import torch\nfrom torch import nn\nmake = lambda: {made}\n")
    refused(lambda: build_model(f"{name}:make", {}), f"model '{name}:make'", *texts)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 6), (5, 4, 6, 6), (5, 4, 3, 3, 3)])
def test_synchronized_norms_become_local_ones(shape: tuple[int, ...]) -> None:
    """Under all their names; in training too, where they would ask for a GPU."""
    norm = nn.SyncBatchNorm(4)
    nn.init.uniform_(norm.weight)
    model = nn.ModuleDict({"a": nn.Sequential(norm), "b": norm})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_local(model)
    assert model["b"] is norm
    assert isinstance(model["a"][0], nn.BatchNorm2d)
    assert model.state_dict().keys() == before.keys()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    outputs = norm.train()(x)
    assert torch.equal(outputs, functional.batch_norm(x, None, None, norm.weight, None, True))
    with pytest.raises(ValueError, match="2 axes"):
        norm(x.flatten()[:4])
