from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from automl_compress.workload import Workload, WorkloadConfig, build_model, load_workload
from automl_compress.workload.digits import DigitsSource

MakeTree = Callable[..., Path]
ReadConfig = Callable[..., WorkloadConfig]
UserModule = Callable[[str], str]
Refused = Callable[..., None]

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs=2, mode="", bias=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, outputs)
        self.mode = mode
        self.conv.requires_grad_(mode != "frozen")
        self.register_buffer("bias", torch.tensor(bias), persistent=False)

    def forward(self, x):
        y = self.linear(self.conv(x).mean((2, 3))) + self.bias
        if self.mode == "raise":
            raise IndexError("out\\nof range")
        if self.mode == "single" and len(x) > 1:
            raise IndexError("one at a time")
        if self.mode == "mean":
            return y.mean(0, keepdim=True)
        return {"nan": y / 0, "tuple": (y, y), "flat": y[0]}.get(self.mode, y)
"""


@pytest.fixture
def net(user_module: UserModule, make_tree: MakeTree, read_config: ReadConfig) -> ReadConfig:
    """Config of a user's network, trained or so it says, on a folder of images."""
    name = f"{user_module(NETS)}:Net"
    make_tree()

    def config(**args: object) -> WorkloadConfig:
        return read_config(model=name, data={"root": "data"}, model_args=args)

    return config


def _digits(read_config: ReadConfig, **values: object) -> Workload:
    return load_workload(read_config(model="digits_cnn", train={"epochs": 1}, **values))


def test_what_a_factory_froze_is_known_though_all_is_frozen(net: ReadConfig) -> None:
    workload = load_workload(net(mode="frozen"))
    assert workload.fixed == {"conv.weight", "conv.bias"}
    assert not any(p.requires_grad for p in workload.model.parameters())
    assert not load_workload(net()).fixed


def test_digits_need_nothing_but_their_name(read_config: ReadConfig) -> None:
    config = read_config(model="digits_cnn")
    assert config.data.source == DigitsSource()
    workload = _digits(read_config)
    assert workload.name == "digits_cnn"
    assert workload.task.name == "classification"
    assert workload.classes == tuple("0123456789")
    assert workload.example_input().shape == (1, 1, 8, 8)
    assert not workload.model.training
    assert not any(value.requires_grad for value in workload.model.parameters())
    expected = torch.from_numpy(workload.splits.train.images[:1] / np.float32(255))
    assert torch.equal(workload.example_input(), expected)


def test_identity_is_stable_and_sees_every_part(read_config: ReadConfig) -> None:
    workloads = [
        _digits(read_config),
        _digits(read_config, seed=1),
        _digits(read_config, data={"digits": True, "seed": 1}),
        _digits(read_config, data={"digits": True, "mean": [0.5]}),
        _digits(read_config, data={"digits": True, "search_validation": {"images": 9}}),
    ]
    assert len({workload.identity for workload in workloads}) == 5
    assert _digits(read_config).identity == workloads[0].identity


def test_identity_sees_arguments_and_hidden_buffers(net: ReadConfig) -> None:
    first, same, other = (load_workload(net(bias=bias)).identity for bias in (0.0, 0.0, 1.0))
    assert first == same != other


def test_a_users_trained_network(net: ReadConfig) -> None:
    workload = load_workload(net())
    with torch.no_grad():
        assert workload.model(workload.example_input()).shape == (1, 2)
    assert workload.classes == ("cat", "dog")


def test_a_workload_can_be_sent_to_another_process(
    make_tree: MakeTree, read_config: ReadConfig
) -> None:
    make_tree(classes="0123456789", size=(8, 8))
    data = {"root": "data", "channels": 1}
    workload = load_workload(read_config(model="digits_cnn", train={"epochs": 1}, data=data))
    assert isinstance(workload.splits.train.images, np.memmap)
    again = pickle.loads(pickle.dumps(workload))
    assert again.identity == workload.identity
    assert torch.equal(again.model(again.example_input()), workload.model(workload.example_input()))


def test_weights_of_a_users_network(
    net: ReadConfig, tmp_path: Path, read_config: ReadConfig
) -> None:
    model = load_workload(net()).model
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    config = read_config(model=net().model, data={"root": "data"}, weights="w.safetensors")
    assert config.weights == tmp_path / "w.safetensors"
    loaded = load_workload(config).model.state_dict()
    assert all((value == 1).all() for value in loaded.values())


def test_a_shipped_network_takes_its_classes_from_the_data(
    make_tree: MakeTree, read_config: ReadConfig, tmp_path: Path
) -> None:
    make_tree(size=(32, 32))
    save_file(build_model("resnet20", {"num_classes": 2}).state_dict(), tmp_path / "w.safetensors")
    config = read_config(model="resnet20", weights="w.safetensors", data={"root": "data"})
    workload = load_workload(config)
    assert workload.model(workload.example_input()).shape == (1, 2)


def test_weights_of_other_classes_are_refused(
    make_tree: MakeTree, read_config: ReadConfig, tmp_path: Path, refused: Refused
) -> None:
    make_tree(size=(32, 32))
    save_file(build_model("resnet20", {}).state_dict(), tmp_path / "w.safetensors")
    config = read_config(model="resnet20", weights="w.safetensors", data={"root": "data"})
    refused(lambda: load_workload(config), "(10, 64) in the file", "(2, 64) in the model")
    config = read_config(
        model="resnet20",
        weights="w.safetensors",
        data={"root": "data"},
        model_args={"num_classes": 10},
    )
    refused(lambda: load_workload(config), "10 outputs for 2 classes")


def test_an_untrained_network_is_refused(read_config: ReadConfig, refused: Refused) -> None:
    config = read_config(model="resnet56", data="digits")
    refused(lambda: load_workload(config), "untrained network cannot be searched", "weights: FILE")


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        ({"outputs": 5}, ("5 outputs for 2 classes",)),
        ({"mode": "nan"}, ("finite logits",)),
        ({"mode": "tuple"}, ("shape (n, 2)", "returned tuple")),
        ({"mode": "flat"}, ("shape (n, 2)", "returned (2,)")),
        ({"mode": "single"}, ("two examples at once", "IndexError: one at a time")),
        ({"mode": "mean"}, ("an answer for every example", "returned (1, 2)")),
        ({"mode": "raise"}, ("(3, 8, 6)", "IndexError: out of range")),
        ({"depth": 5}, ("TypeError", "depth")),
    ],
)
def test_what_a_network_returns_is_checked(
    args: dict[str, object], texts: tuple[str, ...], net: ReadConfig, refused: Refused
) -> None:
    refused(lambda: load_workload(net(**args)), *texts)


def test_images_that_do_not_fit_the_network(
    make_tree: MakeTree, read_config: ReadConfig, refused: Refused
) -> None:
    make_tree(classes="0123456789")
    config = read_config(model="digits_cnn", data={"root": "data"})
    refused(lambda: load_workload(config), "(3, 8, 6)", "RuntimeError", "data.channels")
    config = read_config(model="digits_cnn", data={"root": "data", "channels": 1})
    refused(lambda: load_workload(config), "(1, 8, 8)", "(1, 8, 6)", "data: digits")
    config = read_config(model="digits_cnn", model_args={"num_classes": 5})
    refused(lambda: load_workload(config), "5 outputs for 10 classes")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({}, ("'workload.model' must be given",)),
        ({"model": "resnet65"}, ("did you mean 'resnet56'?",)),
        ({"model": "resnet56"}, ("'workload.data' must be given",)),
        ({"model": "resnet56", "weights": "none.pt"}, ("weights file must exist", "none.pt")),
        ({"model": "resnet56", "data": 3}, ("'workload.data'", "a text or a mapping")),
        ({"model": "resnet56", "data": "x"}, ("'digits'", "{root: x}")),
        ({"model": "resnet56", "data": {"root": "x", "foo": 1}}, ("'workload.data.foo'",)),
        ({"model": "digits_cnn", "wieghts": "x"}, ("did you mean 'weights'?",)),
        ({"model": "digits_cnn", "train": {"epochs": 0}}, ("'workload.train.epochs'",)),
        ({"model": "digits_cnn", "train": {"rate": 1}}, ("'workload.train.rate'",)),
        ({"model": "resnet56", "data": "digits", "train": {}}, ("'workload.train'",)),
        ({"model": "digits_cnn", "seed": -1}, ("'workload.seed'", "at least 0")),
    ],
)
def test_wrong_settings_are_refused(
    values: dict[str, object], texts: tuple[str, ...], read_config: ReadConfig, refused: Refused
) -> None:
    refused(lambda: read_config(**values), *texts)


def test_missing_files_are_named(read_config: ReadConfig, tmp_path: Path, refused: Refused) -> None:
    config = read_config(model="resnet56", data={"root": "nowhere"}, weights="none.pt")
    refused(lambda: load_workload(config), str(tmp_path / "nowhere"))
    config = read_config(model="digits_cnn", weights="none.pt")
    refused(lambda: load_workload(config), str(tmp_path / "none.pt"))
