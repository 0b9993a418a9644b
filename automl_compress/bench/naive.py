"""The loop everybody writes first: copy the network, prune the copy, round, recalibrate, judge.

What estimates are measured against. Torch-Pruning cuts the channels, everything else is plain
PyTorch in float32. It is slow for what it repeats, not for how it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.kinds import BATCH_NORMS, CONVOLUTIONS
from automl_compress.errors import InputError
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, Task

_BATCH: Final = 64
_CALIBRATION_BATCH: Final = 256


class NaiveLoop:
    """Estimates the quality of policies.

    Args:
        compressor: tells which channels are the important ones; its network is copied.
        example_input: (1, ...).
        calibration: (n, ...) for BatchNorm.
        images: (n, ...) that networks are judged by.
        labels: (n, ...).
        task: judges.

    Raises:
        InputError: Torch-Pruning is not installed.
    """

    def __init__(
        self,
        compressor: Compressor,
        example_input: Tensor,
        calibration: Tensor,
        images: Tensor,
        labels: Tensor,
        task: Task = CLASSIFICATION,
    ) -> None:
        try:
            import torch_pruning
        except ImportError as reason:
            raise InputError(
                "bench estimate compares with Torch-Pruning, which is not installed; "
                "pip install 'automl-compress[bench]'"
            ) from reason
        self._pruning: Any = torch_pruning
        self._compressor = compressor
        self._model = compressor.model
        self._example = example_input
        self._calibration, self._images, self._labels = calibration, images, labels
        self._task = task

    def understood_groups(self) -> list[str]:
        """Channel groups that Torch-Pruning follows as the compressor does."""
        found = []
        for group in self._compressor.structure.groups:
            layer = self._model.get_submodule(group.first_writer)
            if group.protected or "#" in group.name or not isinstance(layer, CONVOLUTIONS):
                continue
            model = copy.deepcopy(self._model).requires_grad_(True)
            names = {id(module): name for name, module in model.named_modules()}
            pruned = self._group(model, group.first_writer, [0])
            touched = {names.get(id(dep.target.module), "") for dep, _ in pruned}
            if touched - {""} == {member.module for member in group.members}:
                found.append(group.name)
        return found

    def quality(self, policy: Policy, scales: Mapping[str, Tensor] | None = None) -> float:
        """Quality of a policy's network, in [0, 1].

        Args:
            policy: channels of understood groups, and weight bits.
            scales: (out,) by layer, to round with; by the largest weight where none are given.
        """
        network = self.prune(policy)
        for name, bits in policy.of_kind("weight_bits").items():
            _round(network.get_submodule(name), int(bits), scales[name] if scales else None)
        self._recalibrate(network)
        with torch.no_grad():
            outputs = (network(part) for part in torch.split(self._images, _BATCH))
            return self._task.score(outputs, self._labels).metrics[self._task.quality]

    def prune(self, policy: Policy) -> nn.Module:
        """A copy of the network without the channels a policy removes."""
        network = copy.deepcopy(self._model).requires_grad_(True)
        kept = self._compressor.kept_channels(policy)
        for group in self._compressor.structure.groups:
            if group.name in kept and len(kept[group.name]) < group.channels:
                gone = sorted(set(range(group.channels)) - set(kept[group.name].tolist()))
                self._group(network, group.first_writer, gone).prune()
        return network.eval()

    def _group(self, network: nn.Module, writer: str, channels: list[int]) -> Any:
        with torch.enable_grad():  # it follows gradients
            graph = self._pruning.DependencyGraph().build_dependency(network, self._example)
        layer = network.get_submodule(writer)
        return graph.get_pruning_group(layer, self._pruning.prune_conv_out_channels, channels)

    def _recalibrate(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # an average over all batches
            norm.train()
        with torch.no_grad():
            for start in range(0, len(self._calibration), _CALIBRATION_BATCH):
                network(self._calibration[start : start + _CALIBRATION_BATCH])
        network.eval()


def _round(layer: nn.Module, bits: int, scales: Tensor | None) -> None:
    """Round a layer's weights to integers times a step per output channel."""
    weight = layer.get_parameter("weight")
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        rows = weight.flatten(1)
        steps = rows.abs().amax(dim=1).clamp(min=1e-12) / top if scales is None else scales
        rows.copy_((rows / steps[:, None]).round().clamp(-top, top) * steps[:, None])
