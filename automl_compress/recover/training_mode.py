"""Which modules of a network stay in evaluation mode while it is trained.

GoogLeNet and Inception have auxiliary classifiers (Szegedy et al. 2015, section 5), which run in
training mode alone, where the network returns their answers beside its own. They are no part of
what is deployed, so no trace sees them, and the rest may have been cut since. Such networks are
trained as they are deployed: what asks for the mode in its own code stays in evaluation mode, and
the layers inside, such as BatchNorm and Dropout, do not. Deviation from the paper: the heads are
neither run nor trained, and give no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.modules import own_copy
from automl_compress.errors import InputError
from automl_compress.settings import one_line

_OWN: Final = "torch.nn."
"""Where PyTorch's own modules are, whose mode changes no number of answers."""


def resting_modules(network: nn.Module, inputs: Tensor) -> list[nn.Module]:
    """The modules to keep in evaluation mode: none, or those of so many levels from the top.

    Args:
        network: not changed, its mode neither.
        inputs: (n, ...) a few, two or more where it has BatchNorms, on its device.

    Returns:
        The fewest levels with which it gives one tensor of the shape that it has in evaluation
        mode; of their modules those that hold others.

    Raises:
        InputError: there are none.
    """
    expected = _output(network, inputs, None)
    holders = {
        name: module
        for name, module in network.named_modules()
        if module._modules and not type(module).__module__.startswith(_OWN)
    }
    found: Any = None
    for levels in range(2 + max(map(_level, holders), default=-1)):
        resting = [name for name in holders if _level(name) < levels]
        output = _output(network, inputs, resting)
        if isinstance(output, Tensor) and output.shape == getattr(expected, "shape", None):
            return [holders[name] for name in resting]
        found = output if found is None else found
    remedy = "let it return its answer alone, without those of further heads"
    if isinstance(found, Exception):
        remedy = "correct its code, or give more images a step ('batch') where it wants them"
        if isinstance(expected, Exception) and inputs.device.type != "cpu":
            remedy = "let it make tensors on its input's device, or train with 'device' cpu"
    raise InputError(
        f"a network to train must give one tensor in training mode as it does in evaluation mode, "
        f"{_described(expected)}, but {type(network).__name__} gives {_described(found)}; {remedy}"
    )


def training_heads(network: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Parts that run in training mode alone, and so are neither searched nor trained.

    Args:
        network: not changed, its mode neither.
        inputs: (n, ...) one or more. They are taken twice, as BatchNorms need two.

    Returns:
        How many parameters each has, by its name, the outermost parts only; none where the network
        fails in evaluation mode.
    """
    twice = torch.cat([inputs, inputs])
    deployed, ran = (_parts_run(network, twice, resting) for resting in (None, ()))
    heads: dict[str, int] = {}
    for name in sorted(ran - deployed) if deployed else ():
        count = sum(p.numel() for p in network.get_submodule(name).parameters())
        if count and not any(name.startswith(f"{head}.") for head in heads):
            heads[name] = count
    return heads


def start_training(network: nn.Module, resting: Sequence[nn.Module]) -> None:
    """Put a network into training mode, but for the modules of `resting_modules` themselves."""
    network.train()
    for module in resting:
        module.training = False


def _level(name: str) -> int:
    """0 of the network, 1 of what it holds itself, and so on."""
    return 1 + name.count(".") if name else 0


def _output(network: nn.Module, inputs: Tensor, resting: Sequence[str] | None) -> Any:
    """What a copy in the mode of `_trial` gives, or why it fails."""
    return _answer(_trial(network, resting), inputs)


def _parts_run(network: nn.Module, inputs: Tensor, resting: Sequence[str] | None) -> set[str]:
    """Names of the modules that run in the mode of `_trial`; none where evaluation fails."""
    names: set[str] = set()
    trial = _trial(network, resting)
    for name, module in trial.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: names.add(name))
    with torch.random.fork_rng(devices=[]):
        failed = isinstance(_answer(trial, inputs), Exception)
    return set() if failed and resting is None else names


def _trial(network: nn.Module, resting: Sequence[str] | None) -> nn.Module:
    """A copy in training mode, in evaluation mode where `resting` is None.

    It shares parameters; statistics and counters are its own.
    """
    trial = own_copy(network, {id(p): p for p in network.parameters()})
    trial.eval()
    if resting is not None:
        start_training(trial, [trial.get_submodule(name) for name in resting])
    return trial


def _answer(network: nn.Module, inputs: Tensor) -> Any:
    """What a network gives, or why it fails."""
    try:
        with torch.no_grad():
            return network(inputs)
    except Exception as reason:  # whatever the network's own code raises
        return reason


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"one of shape {tuple(output.shape)}"
    if isinstance(output, Exception):
        return f"an error ({type(output).__name__}: {one_line(output)})"
    return f"a {type(output).__name__}"
