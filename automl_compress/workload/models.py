"""Networks: those shipped here by name, and the user's own by `package.module:factory`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from automl_compress.errors import WorkloadError
from automl_compress.settings import nearest
from automl_compress.user_code import is_factory, resolve, user_code
from automl_compress.workload import densenet_cifar, resnet_cifar, vgg_cifar
from automl_compress.workload.alexnet_cifar import CifarAlexNet
from automl_compress.workload.digits import DigitsCNN
from automl_compress.workload.fcos_resnet import FcosResNet
from automl_compress.workload.mobilenet_cifar import CifarMobileNetV2
from automl_compress.workload.placement import CPU, move
from automl_compress.workload.synchronized import make_local
from automl_compress.workload.torchvision_detectors import looking_once
from automl_compress.workload.wrappers import unwrapped


@dataclass(frozen=True)
class ModelSpec:
    """A network that is shipped.

    Attributes:
        build: constructor; takes `num_classes`.
        input_shape: (c, h, w) the network was designed for.
        trained_here: whether it is trained on the spot when no weights are given; otherwise
            weights are needed.
        data: data it is used with when none is given; empty if it must be given.
        task: what it is made for, `classification` or `detection`.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    trained_here: bool = False
    data: str = ""
    task: str = "classification"


_CIFAR: Final = (3, 32, 32)

MODELS: Final[dict[str, ModelSpec]] = {
    "resnet20": ModelSpec(resnet_cifar.resnet20, _CIFAR),
    "resnet32": ModelSpec(resnet_cifar.resnet32, _CIFAR),
    "resnet44": ModelSpec(resnet_cifar.resnet44, _CIFAR),
    "resnet56": ModelSpec(resnet_cifar.resnet56, _CIFAR),
    "resnet110": ModelSpec(resnet_cifar.resnet110, _CIFAR),
    "vgg16_bn": ModelSpec(vgg_cifar.vgg16_bn, _CIFAR),
    "vgg19_bn": ModelSpec(vgg_cifar.vgg19_bn, _CIFAR),
    "alexnet": ModelSpec(CifarAlexNet, _CIFAR),
    "mobilenet_v2": ModelSpec(CifarMobileNetV2, _CIFAR),
    "densenet40": ModelSpec(densenet_cifar.densenet40, _CIFAR),
    "fcos_resnet": ModelSpec(FcosResNet, (3, 192, 256), task="detection"),
    "digits_cnn": ModelSpec(DigitsCNN, (1, 8, 8), trained_here=True, data="digits"),
}
"""Every shipped network by name."""


def check_model_name(name: str) -> None:
    """Check that a name is a shipped one or is written as a factory.

    Raises:
        WorkloadError: it is neither.
    """
    if name in MODELS or is_factory(name):
        return
    near = nearest(name, MODELS)
    hint = f"did you mean '{near}'?" if near else "correct it"
    raise WorkloadError(
        f"model must be one of {', '.join(MODELS)} or 'package.module:factory', but is "
        f"'{name}'; {hint}"
    )


def build_model(name: str, args: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a network on the CPU, in evaluation mode, its weights frozen.

    Of an SSD, a RetinaNet or an FCOS of torchvision it is the network inside, see
    `torchvision_detectors`.

    Initial weights come from `seed`; the global random state is left as it was.

    Args:
        name: a key of `MODELS` or `package.module:factory`.
        args: keyword arguments of the constructor or factory.
        seed: decides whatever the constructor draws at random.

    Raises:
        WorkloadError: the name is unknown, or the constructor fails or returns something else.
    """
    return frozen(construct_model(name, args, seed))


def construct_model(name: str, args: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a network as `build_model` does, with parameters that want gradients left so.

    Raises:
        WorkloadError: the name is unknown, or the constructor fails or returns something else.
    """
    check_model_name(name)
    build = MODELS[name].build if name in MODELS else resolve(name, WorkloadError)
    with user_code(f"model '{name}'", WorkloadError), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(**args)
    return fitting(name, model)


def fitting(name: str, model: Any) -> nn.Module:
    """What is compressed of a network: itself, or that inside a detector of torchvision's.

    Args:
        name: of the network, for messages.
        model: the network, also in wrappers; synchronized BatchNorms in it become local.

    Raises:
        WorkloadError: it is none, or none of float32 whose parameters have sizes.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise WorkloadError(
            f"model '{name}' must return a torch.nn.Module that runs its own Python code, but "
            f"returned one of type {type(model).__name__}; return the network itself"
        )
    model = unwrapped(model)
    _check_parameters(name, model)
    make_local(model)
    return looking_once(model)


def _check_parameters(name: str, model: nn.Module) -> None:
    """Check that parameters have sizes, and are numbers that all that follows computes with."""
    for path, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise WorkloadError(
                f"the parameters of model '{name}' must have their sizes, but '{path}' has none "
                "yet; call the network on an input before it is returned"
            )
        if parameter.is_meta:
            raise WorkloadError(
                f"the parameters of model '{name}' must have values, but '{path}' is on the device "
                "'meta' and has none; load its weights before"
            )
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise WorkloadError(
                f"model '{name}' must be float32, but '{path}' is {parameter.dtype}; "
                "call .float() on it before it is returned"
            )


def fixed_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that whoever made a network froze, so that no training changes them.

    There are none where all are frozen: such a network was made ready for use, not for training.
    """
    wanting = {
        name: parameter.requires_grad
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() or parameter.is_complex()
    }
    if not any(wanting.values()):
        return frozenset()
    return frozenset(name for name, wants in wanting.items() if not wants)


def frozen(model: nn.Module) -> nn.Module:
    """The network itself, on the CPU, in evaluation mode, without gradients."""
    return move(model, CPU).eval().requires_grad_(False)
