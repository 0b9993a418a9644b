"""From a policy to a network that has its accuracy back."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.batchnorm import measurable_norms, recalibrate
from automl_compress.compress.fold import fold_norms, foldable_norms
from automl_compress.compress.memory_order import order_for, put_in_order
from automl_compress.compress.modules import own_copy
from automl_compress.compress.quantize import is_quantized
from automl_compress.errors import InputError
from automl_compress.recover.fixed import fixed_in, trainable_but
from automl_compress.recover.gradual import epochs_of_stages, policies_towards, without_bits
from automl_compress.recover.losses import Distillation, LabelsLoss, Loss, attention_points
from automl_compress.recover.lsq import Limits, freeze, make_learnable, unquantize
from automl_compress.recover.measurement import measure
from automl_compress.recover.mirroring import knows_mirrored
from automl_compress.recover.rounding import RoundedTogether
from automl_compress.recover.settings import (
    DETECTOR_RECOVERY,
    RecoverySettings,
    find_device,
    section_of,
)
from automl_compress.recover.training import (
    Listener,
    Standing,
    Trainer,
    hear_nothing,
)
from automl_compress.settings import shown
from automl_compress.space import Policy
from automl_compress.workload import (
    CLASSIFICATION,
    ImageSet,
    Normalization,
    Task,
    fixed_parameters,
    task_of,
)
from automl_compress.workload.placement import CPU, move
from automl_compress.workload.torch_modes import usual_modes


@dataclass(frozen=True, eq=False)
class Recovered:
    """A trained compressed network.

    Args:
        network: as `compress` builds it, with other weights; on the processor, in evaluation
            mode.
        chosen: which state of it was kept: `averaged` or `last`, and `, new statistics` where
            those of BatchNorm were measured again.
        mirrored: whether training images were.
        steps: of the training.
        seconds: what this process spent on it.
    """

    network: nn.Module
    chosen: str
    mirrored: bool
    steps: int
    seconds: float


@usual_modes()
def recover(
    model: nn.Module,
    policy: Policy,
    images: ImageSet,
    normalization: Normalization | None = None,
    **settings: Any,
) -> nn.Module:
    """Build the smaller network a policy describes and train it to be like the original.

    Args:
        model: the trained network; not changed. Parameters of it that are frozen are not
            trained, unless all are.
        policy: kept channels and bits.
        images: training images; `ImageSet.of(pixels, labels)` makes them from arrays, of class
            indices or of boxes, see `workload.boxes`; a workload's are its `splits.train`.
        normalization: what turns their pixels into the network's input; None scales to 0..1. A
            workload's is its `normalization`.
        **settings: those of `RecoverySettings` and its training, such as `epochs=10`.

    Returns:
        The network in evaluation mode, as `compress` builds it.

    Raises:
        InputError: a setting is wrong, the policy does not fit the network, or this cannot be
            trained.
        EngineError: the loss is not finite.
    """
    if not isinstance(images, ImageSet):
        raise InputError(
            f"training examples must be an ImageSet, but are {shown(images)}; make one of arrays, "
            "ImageSet.of(pixels, labels), or take a workload's splits.train"
        )
    if not isinstance(normalization, Normalization | None):
        raise InputError(
            f"a normalization must be a Normalization, but is {shown(normalization)}; make one: "
            "Normalization(mean, std)"
        )
    default = DETECTOR_RECOVERY if images.boxed else None
    chosen = RecoverySettings.from_section(section_of(**settings), default)
    scaling = normalization or Normalization.unit(images.shape[0])
    count = min(chosen.calibration_images, len(images))
    calibration = images.draw(count, chosen.training.seed).tensor(scaling)
    compressor = Compressor(model, calibration[:1], calibration)
    fixed = fixed_in(compressor.model, model, fixed_parameters(model))
    return recover_policy(compressor, policy, images, scaling, chosen, fixed=fixed).network


def recover_policy(
    compressor: Compressor,
    policy: Policy,
    images: ImageSet,
    normalization: Normalization,
    settings: RecoverySettings,
    checkpoint: Path | None = None,
    listener: Listener = hear_nothing,
    teacher: nn.Module | None = None,
    trained: nn.Module | None = None,
    fixed: Collection[str] = (),
) -> Recovered:
    """Train the network that a compressor builds of a policy to be like the original.

    `recover` with a compressor that is at hand, which decides where training starts.

    Args:
        compressor: of the network that is cut.
        policy: kept channels and bits.
        images: training images.
        normalization: turns their pixels into input.
        settings: how.
        checkpoint: see `Trainer.run`; stages before the last have files beside it.
        listener: hears how far it has come.
        teacher: distilled from; the compressor's network when not given.
        trained: what an earlier recovery of the policy made, trained further.
        fixed: names of the compressor's parameters that are not trained, see `fixed_in`.

    Raises:
        SpaceError: the policy does not fit the network.
        InputError: the checkpoint is broken or another training's, a trained network has stages,
            or the network cannot be trained, see `Trainer`.
        EngineError: the loss is not finite.
        InterruptedStudy: the user stopped it.
    """
    start = time.monotonic()
    if trained is not None and settings.stages > 1:
        raise InputError(
            f"a network that is trained further is not cut again, but 'stages' is "
            f"{settings.stages}; leave it out"
        )
    compressor.cost.check(policy)
    original = compressor.model if teacher is None else teacher
    networks = [original, compressor.model, *([] if trained is None else [trained])]
    identity = _identity(networks, policy, images, normalization, settings, fixed)
    training = _training(original, images, normalization, settings, identity, trained, fixed)
    channels = {group.name: group.channels for group in compressor.structure.groups}
    policies = policies_towards(policy, channels, settings.stages)
    for stage, early in enumerate(policies[:-1]):
        trainer = training.run(compressor, early, stage, checkpoint, listener)
        trainer.use_average()
        unquantize(trainer.network)
        compressor = compressor.of_network(_at_rest(trainer.network))
    trainer = training.run(compressor, policy, settings.stages - 1, checkpoint, listener)
    chosen, network = training.best(trainer)
    mirrored = bool(training.settings.training.augment.flip)
    seconds = time.monotonic() - start
    return Recovered(_at_rest(network), chosen, mirrored, training.steps, seconds)


@dataclass(frozen=True, eq=False)
class _Training:
    """What all stages of a recovery have in common.

    Args:
        fitted: images that are trained on.
        judges: images that no step sees, or None.
        normalization: turns their pixels into input.
        settings: how.
        loss: what is minimised.
        identity: names everything that decides the result.
        task: what the networks do.
        trained: where training starts, when not from what a compressor builds.
        fixed: names of parameters that are not trained.
    """

    fitted: ImageSet
    judges: ImageSet | None
    normalization: Normalization
    settings: RecoverySettings
    loss: Loss
    identity: str
    task: Task
    trained: nn.Module | None = None
    fixed: Collection[str] = ()

    @property
    def device(self) -> torch.device:
        """Where it is done."""
        return find_device(self.settings.training.device)

    @property
    def steps(self) -> int:
        """Of all stages."""
        training = self.settings.training
        return training.epochs * (len(self.fitted) // min(training.batch, len(self.fitted)))

    def run(
        self,
        compressor: Compressor,
        policy: Policy,
        stage: int,
        checkpoint: Path | None,
        listener: Listener,
    ) -> Trainer:
        """Build and train the network of one stage."""
        training = self.settings.training
        epochs = epochs_of_stages(training.epochs, self.settings.stages)
        learned_steps = self.settings.learned_steps
        network = _starting_network(compressor, policy, learned_steps, self.trained, self.fixed)
        network = move(network, self.device)
        loss = RoundedTogether(self.loss, network) if self.device.type == "cuda" else self.loss
        trainer = Trainer(
            network,
            self.fitted,
            self.normalization,
            replace(training, epochs=epochs[stage], seed=training.seed + stage),
            loss,
            f"{self.identity}-{stage}",
            after_step=Limits(network),
            judges=self.judges,
            task=self.task,
        )
        last = stage == self.settings.stages - 1
        if checkpoint is not None and not last:
            checkpoint = checkpoint.with_name(f"{checkpoint.name}.{stage}")
        trainer.run(checkpoint, partial(_tell_of_all, listener, sum(epochs[:stage]), sum(epochs)))
        return trainer

    def best(self, trainer: Trainer) -> tuple[str, nn.Module]:
        """The state whose loss on the judges is least, and its name."""
        network = trainer.network
        candidates = {"last": network}
        if self.settings.training.average:
            candidates = {"averaged": network, "last": own_copy(network)}
            trainer.use_average()
        for candidate in candidates.values():
            freeze(candidate)
        chosen = next(iter(candidates))
        if self.judges is not None:
            candidates |= _with_new_statistics(
                candidates, self.fitted, self.normalization, self.settings, self.device
            )
            losses = {
                name: measure(
                    candidate, self.judges, self.normalization, self.device, self.task
                ).loss
                for name, candidate in candidates.items()
            }
            chosen = min(losses, key=losses.__getitem__)
        return chosen, candidates[chosen]


def _training(
    original: nn.Module,
    images: ImageSet,
    normalization: Normalization,
    settings: RecoverySettings,
    identity: str,
    trained: nn.Module | None,
    fixed: Collection[str],
) -> _Training:
    """Prepare what all stages of a recovery have in common.

    Args:
        original: distilled from.
        images: of which some judge.
        normalization: turns their pixels into input.
        settings: how.
        identity: see `_identity`.
        trained: where training starts, or None.
        fixed: names of parameters that are not trained.
    """
    fitted, judges = _held_out(images, settings)
    example = images.tensor(normalization, 0, 1)
    task = task_of(original, images, example)
    if not images.boxed:
        _check_logits(original, example, images)
    known = partial(knows_mirrored, original, images, normalization, task)
    settings = replace(settings, training=settings.training.mirroring(known))
    loss = _loss(original, example, settings, task)
    return _Training(fitted, judges, normalization, settings, loss, identity, task, trained, fixed)


def _check_logits(original: nn.Module, example: Tensor, images: ImageSet) -> None:
    """Check that a network gives a logit for every class that the images' labels name.

    Raises:
        WorkloadError: it does not.
    """
    with torch.no_grad():
        output = original(example)
    classes = int(images.labels.max()) + 1
    if isinstance(output, Tensor) and output.ndim == 2:
        classes = max(classes, output.shape[1])
    CLASSIFICATION.check_output(type(original).__name__, output, classes)


def _tell_of_all(listener: Listener, before: int, epochs: int, standing: Standing) -> None:
    """Tell how far all stages have come.

    Args:
        listener: is told.
        before: epochs of the stages before.
        epochs: of all stages.
        standing: of one stage.
    """
    a_pass = standing.steps // standing.epochs
    done, steps = before * a_pass + standing.step, epochs * a_pass
    listener(
        replace(
            standing,
            step=done,
            steps=steps,
            epoch=before + standing.epoch,
            epochs=epochs,
            seconds_left=(steps - done) * standing.batch / max(1e-9, standing.images_per_second),
        )
    )


def _at_rest(network: nn.Module) -> nn.Module:
    """On the processor, in evaluation mode, with the usual order of axes."""
    return move(network, CPU).to(memory_format=torch.contiguous_format).eval()


def _held_out(images: ImageSet, settings: RecoverySettings) -> tuple[ImageSet, ImageSet | None]:
    """Images for training, and those that no step sees."""
    count = settings.judges_of(len(images))
    if not count:
        return images, None
    order = np.random.default_rng(settings.training.seed).permutation(len(images))
    return images.take(np.sort(order[count:])), images.take(np.sort(order[:count]))


def _starting_network(
    compressor: Compressor,
    policy: Policy,
    learned_steps: bool,
    trained: nn.Module | None,
    fixed: Collection[str],
) -> nn.Module:
    """The compressed network in its trainable form.

    Rounded weights start from what they were before rounding, and everything else from the
    repaired network that the search measured; all of it from a trained one, where there is one.
    Fixed weights stay as the search measured them; only the steps of their grids are trained.
    """
    if trained is not None:
        network = trainable_but(own_copy(trained), fixed)
        make_learnable(network, {}, learned_steps)
        return network
    network = trainable_but(own_copy(compressor.build(policy)), fixed)
    unrounded = compressor.build(without_bits(policy))
    weights: dict[str, Tensor] = {
        name: unrounded.get_submodule(name).get_parameter("weight")
        for name, module in network.named_modules()
        if is_quantized(module) and f"{name}.weight" not in fixed
    }
    make_learnable(network, weights, learned_steps)
    return network


def _loss(original: nn.Module, example: Tensor, settings: RecoverySettings, task: Task) -> Loss:
    if not (settings.distill or settings.features):
        return LabelsLoss(task, settings.training.label_smoothing)
    points = attention_points(original, example) if settings.features else ()
    teacher = own_copy(original)
    fold_norms(teacher, foldable_norms(original, example))
    device = find_device(settings.training.device)
    move(teacher, device)
    put_in_order(teacher, order_for(teacher, example.to(device)))
    return Distillation(
        teacher,
        settings.distill,
        settings.temperature,
        settings.training.label_smoothing,
        settings.features,
        points,
        task,
    )


def _with_new_statistics(
    candidates: Mapping[str, nn.Module],
    images: ImageSet,
    normalization: Normalization,
    settings: RecoverySettings,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Copies of networks with BatchNorm statistics of some training images."""
    count = min(settings.calibration_images, len(images))
    drawn = images.draw(count, settings.training.seed).tensor(normalization).to(device)
    found: dict[str, nn.Module] = {}
    for name, network in candidates.items():
        if measurable_norms(network):
            renewed = own_copy(network)
            with torch.no_grad():
                recalibrate(renewed, drawn)
            found[f"{name}, new statistics"] = renewed
    return found


def _identity(
    networks: Sequence[nn.Module],
    policy: Policy,
    images: ImageSet,
    normalization: Normalization,
    settings: RecoverySettings,
    fixed: Collection[str],
) -> str:
    """Hash of everything that decides the result but the device's arithmetic."""
    parts: list[Any] = [
        [state_hash(network) for network in networks],
        policy.key,
        images.content_hash,
        [normalization.mean, normalization.std],
        settings.deciding(),
    ]
    if fixed:
        parts.append(sorted(fixed))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def state_hash(network: nn.Module) -> str:
    """SHA-256 (hex) of a network's tensors and their names."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
