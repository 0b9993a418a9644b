"""From policies to smaller networks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.batchnorm import PairedStatistics
from automl_compress.compress.calibration import Sample, sample_layers
from automl_compress.compress.cost_model import CostModel
from automl_compress.compress.fold import foldable_norms
from automl_compress.compress.importance import Criterion, channel_order, find_criterion
from automl_compress.compress.kernel_sparsity import (
    KernelCriterion,
    kernel_norms,
    removed_kernels,
    signal_to_noise,
    without_kernels,
)
from automl_compress.compress.layerwise import LayerwiseFits
from automl_compress.compress.modules import become, module_at, own_copy, share_copy, trainable
from automl_compress.compress.places import Places, kept_places
from automl_compress.compress.quantize import (
    InputQuantizer,
    choose_input_quantizer,
    choose_scales,
    layer_of_grids,
    quantized_layer,
)
from automl_compress.compress.repair import Repair, Repairer, fitting_images
from automl_compress.compress.slicing import cut_channels
from automl_compress.compress.structure import Structure
from automl_compress.compress.tracing.trace import TIME_LIMIT, trace
from automl_compress.errors import InputError, SpaceError
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, Task
from automl_compress.workload.torch_modes import usual_modes

_CACHED_SCALES: Final = 20_000
STATISTICS_IMAGES: Final = 64
"""Images that show what layerwise repair leaves to BatchNorm; see `PairedStatistics`."""


class Compressor:
    """Builds any compressed form of one network; everything shared is prepared once.

    Args:
        model: the trained network; never changed.
        example_input: (1, channels, height, width), or whatever the network takes.
        calibration: (n, ...) images that choose clips and repair the
            network; without them, weights are quantized by rule and activations cannot be.
        criterion: a name in `importance.CRITERIA`, `package.module:callable`, or a function like
            those.
        repair: what is done to every built network: `layerwise` by `LayerwiseFits`, everything
            else by `Repairer`.
        kernel_criterion: which kernels a `kernel_sparsity` gene removes, see `kernel_sparsity`.
        seed: for criteria that draw.
        time_limit: seconds that following the network may take.
        low_precision: whether layerwise repair runs networks in bfloat16.
        task: what the network does; criteria that learn from its answers ask for it.

    Raises:
        TraceError: the network cannot be followed, or not in time.
        InputError: there is no such criterion, it cannot score this network, or the calibration
            images are not like the example.
    """

    @usual_modes()
    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        calibration: Tensor | None = None,
        criterion: str | Criterion = "l1",
        repair: Repair = "auto",
        kernel_criterion: KernelCriterion = "magnitude",
        seed: int = 0,
        time_limit: float = TIME_LIMIT,
        low_precision: bool = False,
        task: Task = CLASSIFICATION,
    ) -> None:
        score = find_criterion(criterion, task)
        if isinstance(calibration, Tensor):
            calibration = calibration.cpu()
        if isinstance(example_input, Tensor):
            example_input = example_input.cpu()
        self._again: Callable[..., Compressor] = partial(
            Compressor,
            example_input=example_input,
            calibration=calibration,
            criterion=criterion,
            repair=repair,
            kernel_criterion=kernel_criterion,
            seed=seed,
            time_limit=time_limit,
            low_precision=low_precision,
            task=task,
        )
        self.model, self.structure = trace(model, example_input, time_limit)
        if calibration is not None:
            _check_calibration(calibration, example_input)
        self.cost = CostModel(self.structure)
        self._order = channel_order(self.model, self.structure.groups, score, calibration, seed)
        self._kernel_scores: dict[str, Tensor] = {}
        if kernel_criterion == "variational":
            convolutions = [layer.name for layer in self.structure.layers if layer.convolution]
            self._kernel_scores = signal_to_noise(self.model, convolutions, calibration, seed, task)
        self._example_input = example_input
        self._calibration = calibration
        self._scales: OrderedDict[tuple[str, int, bytes], Tensor] = OrderedDict()
        self._input_grids: dict[tuple[str, int], InputQuantizer] = {}
        self._prepare(repair, low_precision)

    def _prepare(self, repair: Repair, low_precision: bool) -> None:
        """Learn from the calibration images what a repair needs."""
        self._samples: dict[str, Sample] = {}
        self._repairer: Repairer | None = None
        self._fits: LayerwiseFits | None = None
        calibration = self._calibration
        if calibration is None or not len(calibration):
            return
        layers = [layer.name for layer in self.structure.layers if layer.quantizable]
        images = fitting_images(calibration, repair)
        alone = repair == "layerwise"
        self._samples = sample_layers(self.model, layers, images, moments=alone)
        if not alone:
            self._repairer = Repairer(self.model, calibration, self._samples, repair)
            return
        followed = foldable_norms(self.model, self._example_input)
        self._fits = LayerwiseFits(self.model, self._samples, followed.values())
        few = calibration[:STATISTICS_IMAGES]
        self._statistics = PairedStatistics(self.model, few, low_precision, followed)

    @property
    def order(self) -> Mapping[str, NDArray[np.int64]]:
        """By group name, (channels,) its channels from the most to the least important."""
        return self._order

    def with_repair(self, repair: Repair, low_precision: bool = False) -> Compressor:
        """A compressor of the same network with another repair; what was found out is shared.

        Args:
            repair: as for `Compressor`.
            low_precision: as for `Compressor`.
        """
        other = copy.copy(self)
        other._again = partial(self._again, repair=repair, low_precision=low_precision)
        other._scales, other._input_grids = OrderedDict(), {}
        other._prepare(repair, low_precision)
        return other

    def of_network(self, model: nn.Module) -> Compressor:
        """A compressor with these settings for another network that takes the same inputs.

        Args:
            model: not changed, such as a compressed one that was trained.

        Raises:
            TraceError: it cannot be followed.
        """
        return self._again(model)

    def build(self, policy: Policy, statistics: bool = True) -> nn.Module:
        """The network a policy describes, in evaluation mode, without gradients.

        Tensors a policy leaves alone are shared with other networks built here; copy the result
        before training it.

        Args:
            policy: kept channels, bits and shares.
            statistics: whether layerwise repair renews BatchNorm statistics.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        self.cost.check(policy)
        kept = self.kept_channels(policy)
        with torch.no_grad():
            places = kept_places(self.model, self.structure.groups, kept)
            network = cut_channels(self.model, places)
            removed = self._remove_kernels(network, policy, places)
            if self._fits is not None and len(policy):
                self._fit_alone(self._fits, network, policy, places, removed)
                if statistics:
                    self._statistics.renew(network, places)
                return network
            weights = {n: module_at(network, n).get_parameter("weight") for n in self._samples}
            self._quantize(network, policy, places)
            if len(policy) and self._repairer is not None:
                network = self._repairer(network, weights, places, removed)
        return network

    def kept_channels(self, policy: Policy) -> dict[str, NDArray[np.int64]]:
        """The most important channels of every group, as many as the policy says, ascending."""
        return {
            name: np.sort(self._order[name][: int(count)])
            for name, count in policy.of_kind("channels").items()
            if name in self._order
        }

    def _remove_kernels(
        self, network: nn.Module, policy: Policy, places: dict[str, Places]
    ) -> dict[str, Tensor]:
        """Set kernels to zero; by layer name, (out, in / groups) which ones."""
        found = {}
        for name, sparsity in policy.of_kind("kernel_sparsity").items():
            layer = module_at(network, name)
            weight = layer.get_parameter("weight")
            scores = self._kernel_scores.get(name)
            scores = kernel_norms(weight) if scores is None else _at(scores, places.get(name))
            removed = removed_kernels(scores, sparsity)
            if removed.any():
                found[name] = removed
                thinned = without_kernels(weight.detach(), removed)
                layer._parameters["weight"] = nn.Parameter(thinned, weight.requires_grad)
        return found

    def _fit_alone(
        self,
        fits: LayerwiseFits,
        network: nn.Module,
        policy: Policy,
        places: dict[str, Places],
        removed: dict[str, Tensor],
    ) -> None:
        """Give every layer fitted weights, rounded to its bits, and its input's grid."""
        weight_bits = policy.of_kind("weight_bits")
        activation_bits = policy.of_kind("activation_bits")
        for name in self._samples:
            layer = module_at(network, name)
            stays = places.get(name, Places())
            bits = int(weight_bits[name]) if name in weight_bits else None
            inputs = stays.inputs if getattr(layer, "groups", 1) == 1 else None
            if name in removed:
                free = _free_weights(removed[name], layer, stays, module_at(self.model, name))
                fitted = fits.fit_sparse(name, inputs, bits, free)
            else:
                fitted = fits.fit(name, inputs, bits)
            fitted = fitted.of_outputs(stays.out)
            fitted.set(layer)
            if bits is not None or name in activation_bits:
                grid = activation_bits.get(name)
                quantizer = None if grid is None else self._input_quantizer(name, int(grid))
                become(layer, layer_of_grids(layer, bits, fitted.scales, quantizer))

    def _quantize(self, network: nn.Module, policy: Policy, places: dict[str, Places]) -> None:
        weight_bits = policy.of_kind("weight_bits")
        activation_bits = policy.of_kind("activation_bits")
        for name in dict.fromkeys((*weight_bits, *activation_bits)):
            layer = module_at(network, name)
            stays = places.get(name, Places())
            bits = int(weight_bits[name]) if name in weight_bits else None
            quantizer = (
                self._input_quantizer(name, int(activation_bits[name]))
                if name in activation_bits
                else None
            )
            scales = None if bits is None else self._weight_scales(name, bits, stays)
            become(layer, quantized_layer(layer, bits, scales, quantizer))

    def _weight_scales(self, name: str, bits: int, stays: Places) -> Tensor:
        """Scales of the kept outputs; those of all outputs are cached per kept inputs."""
        layer = module_at(self.model, name)
        depthwise = getattr(layer, "groups", 1) > 1
        inputs = None if depthwise else stays.inputs
        key = (name, bits, b"" if inputs is None else inputs.numpy().tobytes())
        if key not in self._scales:
            weight: Tensor = layer.get_parameter("weight")
            sample = self._samples[name].inputs if name in self._samples else None
            if inputs is not None:
                sample = None if sample is None else _of_channels(sample, inputs, weight)
                weight = weight[:, inputs]
            self._scales[key] = choose_scales(weight, bits, sample)
            if len(self._scales) > _CACHED_SCALES:
                self._scales.popitem(last=False)
        scales = self._scales[key]
        return scales if stays.out is None else scales[stays.out]

    def _input_quantizer(self, name: str, bits: int) -> InputQuantizer:
        if name not in self._samples:
            raise SpaceError(
                f"activation_bits need calibration examples to find ranges, but '{name}' has none; "
                "pass calibration"
            )
        if (name, bits) not in self._input_grids:
            weight = module_at(self.model, name).get_parameter("weight")
            grid = choose_input_quantizer(weight, bits, self._samples[name].inputs)
            self._input_grids[name, bits] = grid
        return share_copy(self._input_grids[name, bits])


def _check_calibration(calibration: object, example_input: Tensor) -> None:
    """Check that calibration images are what the network takes."""
    if not isinstance(calibration, Tensor):
        raise InputError(
            f"calibration examples must be one tensor, but are a {type(calibration).__name__}; "
            "stack them"
        )
    shape, example = tuple(calibration.shape[1:]), tuple(example_input.shape[1:])
    if shape != example or calibration.dtype != example_input.dtype:
        raise InputError(
            f"calibration examples must be like the example input, {example} "
            f"{example_input.dtype}, but are {shape} {calibration.dtype}; prepare them alike"
        )
    if not bool(torch.isfinite(calibration).all()):
        raise InputError(
            "calibration examples must be finite, but hold NaN or infinity; repair them"
        )


def _free_weights(removed: Tensor, layer: nn.Module, stays: Places, whole: nn.Module) -> Tensor:
    """(out, fan_in) weights that need not be zero, for all outputs of the uncut layer.

    Args:
        removed: (kept out, in / groups) kernels of the cut layer.
        layer: the cut layer.
        stays: what is left of it.
        whole: the uncut layer.
    """
    weight = layer.get_parameter("weight")
    free = (~removed).repeat_interleave(weight[0, 0].numel(), dim=1)
    if stays.out is None:
        return free
    every = free.new_ones(len(whole.get_parameter("weight")), free.shape[1])
    every[stays.out] = free
    return every


def _at(scores: Tensor, stays: Places | None) -> Tensor:
    """(out, in) scores of the kernels that stay; of a depthwise layer, in is 1."""
    if stays is None:
        return scores
    kept = scores if stays.out is None else scores[stays.out]
    return kept if stays.inputs is None or kept.shape[1] == 1 else kept[:, stays.inputs]


def _of_channels(sample: Tensor, channels: Tensor, weight: Tensor) -> Tensor:
    """Columns of (1, samples, in * kernel) that belong to some input channels."""
    per_channel = sample.reshape(*sample.shape[:2], weight.shape[1], -1)
    return per_channel[:, :, channels].flatten(2)


@usual_modes()
def compress(
    model: nn.Module,
    policy: Policy,
    example_input: Tensor,
    calibration: Tensor | None = None,
) -> nn.Module:
    """Build the smaller network a policy describes.

    A study's networks are repaired as it says; `finish.load_network` gives them.

    Args:
        model: the trained network; not changed, and no tensor is shared with the result.
        policy: kept channels and bits.
        example_input: (1, channels, height, width), or whatever the network takes.
        calibration: (n, ...) images, a few hundred of the training set; they
            choose clips and repair the network, which otherwise loses far more accuracy.
            Activation bits need them.

    Returns:
        A physically smaller network in evaluation mode, with trainable parameters.

    Raises:
        TraceError: the network cannot be followed.
        SpaceError: the policy does not fit it.
    """
    built = Compressor(model, example_input, calibration).build(policy)
    return trainable(own_copy(built))


def cost(model: nn.Module, policy: Policy, example_input: Tensor) -> dict[str, float]:
    """What a policy's network costs per image: `size_bytes`, `macs`, `params`, `bitops`.

    Args:
        model: the network; not changed.
        policy: kept channels and bits; an empty policy costs the original network.
        example_input: (1, channels, height, width), or whatever the network takes.

    Raises:
        TraceError: the network cannot be followed.
        SpaceError: the policy does not fit it.
    """
    structure: Structure = trace(model, example_input)[1]
    return CostModel(structure)(policy)
