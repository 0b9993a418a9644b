"""How networks are trained: one set of settings for baselines, sparsity and recovery."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import torch

from automl_compress.errors import InputError
from automl_compress.recover.gradual import epochs_of_stages
from automl_compress.settings import (
    LARGEST_SEED,
    Origin,
    Section,
    as_stated,
    each,
    put_value,
    read_assignment,
)
from automl_compress.workload.arithmetic import has_bfloat16

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: Final = ("auto", "float32", "bfloat16")
Optimizer = Literal["sgd", "adamw"]
OPTIMIZERS: Final = ("sgd", "adamw")
ADAPTIVE: Final = 100.0
"""AdamW's usual rate is so many times smaller than SGD's, and its weight decay as many times
larger: a step shrinks weights by the product of both (Loshchilov & Hutter 2019, algorithm 2)."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; examples that are no images (c, h, w) have none.

    Args:
        crop: pixels an image is moved by at most, each way; black pixels come in. None is an
            eighth of its height.
        flip: whether half of the images are mirrored; None where the network that training
            starts from, or the one it is distilled from, knows mirrored images, see
            `mirroring.knows_mirrored`, and in training images from scratch.
        cutout: side of a square that is blotted out, in pixels; 0 for none (DeVries & Taylor
            2017).
    """

    crop: int | None = None
    flip: bool | None = None
    cutout: int = 0

    def read(self, section: Section) -> Augmentation:
        """These settings with what a section says instead; the section is closed."""
        found = Augmentation(
            section.number("crop", int, self.crop, low=0),
            section.get("flip", bool, self.flip),
            section.number("cutout", int, self.cutout, low=0),
        )
        section.close()
        return found


@dataclass(frozen=True)
class TrainingSettings:
    """SGD with Nesterov momentum or AdamW, a linear warm-up and a cosine to zero.

    Args:
        epochs: passes over the training images.
        batch: images a step.
        optimizer: `sgd`, or `adamw` for networks that SGD hardly trains, such as transformers.
        rate: highest learning rate.
        warmup: share of the steps in which the rate rises.
        momentum: of SGD; AdamW's first decay rate.
        weight_decay: of tensors with two axes or more; vectors are not decayed.
        label_smoothing: share of the target spread over all classes.
        average: decay of the exponential average of the weights; 0 for none.
        augment: random changes of the images.
        seed: decides order and changes of the images, and dropout.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of the products; `auto` is bfloat16 on devices that are faster with it.
    """

    epochs: int = 10
    batch: int = 128
    optimizer: Optimizer = "sgd"
    rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    average: float = 0.999
    augment: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    def deciding(self) -> dict[str, Any]:
        """What decides the result but for a device's arithmetic, to name a training by."""
        return {**self.to_dict(), "device": type(self).device}

    def mirroring(self, known: Callable[[], bool]) -> TrainingSettings:
        """These settings with `augment.flip` decided.

        Args:
            known: says whether mirrored images are known, where that is not stated.
        """
        if self.augment.flip is not None:
            return self
        return replace(self, augment=replace(self.augment, flip=known()))

    def read(self, section: Section) -> TrainingSettings:
        """These settings with what a section says instead; the section stays open.

        Where it names another optimizer, rate and weight decay are as usual for that one.
        """
        optimizer = section.choice("optimizer", OPTIMIZERS, self.optimizer)
        if optimizer != self.optimizer:
            return self._with_optimizer(optimizer).read(section)  # type: ignore[arg-type]
        return TrainingSettings(
            epochs=section.number("epochs", int, self.epochs, low=1),
            batch=section.number("batch", int, self.batch, low=2),
            optimizer=self.optimizer,
            rate=section.number("rate", float, self.rate, low=0.0),
            warmup=section.number("warmup", float, self.warmup, low=0.0, high=1.0),
            momentum=section.number("momentum", float, self.momentum, low=0.0, high=0.9999),
            weight_decay=section.number("weight_decay", float, self.weight_decay, low=0.0),
            label_smoothing=section.number(
                "label_smoothing", float, self.label_smoothing, low=0.0, high=1.0
            ),
            average=section.number("average", float, self.average, low=0.0, high=0.99999),
            augment=self.augment.read(section.section("augment")),
            seed=section.number("seed", int, self.seed, low=0, high=LARGEST_SEED),
            device=section.get("device", str, self.device),
            precision=section.choice("precision", PRECISIONS, self.precision),  # type: ignore[arg-type]
        )

    def _with_optimizer(self, optimizer: Optimizer) -> TrainingSettings:
        factor = ADAPTIVE if optimizer == "adamw" else 1.0 / ADAPTIVE
        return replace(
            self,
            optimizer=optimizer,
            rate=self.rate / factor,
            weight_decay=self.weight_decay * factor,
        )


BASELINE: Final = TrainingSettings(epochs=200)
"""Training from scratch: the usual 200 epochs of the CIFAR literature."""
SPARSITY: Final = TrainingSettings(epochs=30, rate=0.01)
"""Sparsity training goes on from trained weights."""
DETECTOR_BASELINE: Final = TrainingSettings(
    epochs=100, batch=16, rate=0.02, weight_decay=1e-4, average=0.99
)
"""Training a detector from scratch: small batches, for the images are large, and few of them, so
that weights are averaged over a few epochs only."""
DETECTOR_SPARSITY: Final = replace(DETECTOR_BASELINE, epochs=30, rate=0.005)
"""Sparsity training of a detector."""


@dataclass(frozen=True)
class RecoverySettings:
    """How a compressed network gets its accuracy back.

    Args:
        training: the training loop's settings; its rate is small, for weights that are trained.
        distill: share of the loss that asks for the original's outputs, in [0, 1]; the rest asks
            for the labels.
        temperature: softens the outputs that are compared (Hinton et al. 2015).
        features: weight of the attention maps' distance (Zagoruyko & Komodakis 2017); 0 leaves
            them alone.
        learned_steps: whether the steps of the grids are trained with the weights (LSQ).
        held_out: share of the training images that no step sees. They judge which network is
            kept: the averaged weights or the last ones, with BatchNorm statistics of the training
            or measured again.
        calibration_images: training images that choose clips and give BatchNorm statistics.
        stages: networks that are trained one after the other, each cut out of the one before and
            nearer to the policy's; 1 cuts at once.
    """

    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(epochs=30, rate=0.02)
    )
    distill: float = 0.5
    temperature: float = 4.0
    features: float = 0.0
    learned_steps: bool = True
    held_out: float = 0.05
    calibration_images: int = 256
    stages: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)

    def deciding(self) -> dict[str, Any]:
        """See `TrainingSettings.deciding`."""
        return {**self.to_dict(), "training": self.training.deciding()}

    def judges_of(self, examples: int) -> int:
        """How many of so many training examples are held out."""
        return int(self.held_out * examples)

    @classmethod
    def from_section(
        cls, section: Section, default: RecoverySettings | None = None
    ) -> RecoverySettings:
        """Read and close a mapping of these settings and the training loop's, side by side.

        Args:
            section: the mapping.
            default: settings that it does not name; those of a full recovery when not given.
        """
        default = default or cls()
        found = cls(
            training=default.training.read(section),
            distill=section.number("distill", float, default.distill, low=0.0, high=1.0),
            temperature=section.number("temperature", float, default.temperature, low=0.1),
            features=section.number("features", float, default.features, low=0.0),
            learned_steps=section.get("learned_steps", bool, default.learned_steps),
            held_out=section.number("held_out", float, default.held_out, low=0.0, high=0.5),
            calibration_images=section.number(
                "calibration_images", int, default.calibration_images, low=8
            ),
            stages=section.number("stages", int, default.stages, low=1),
        )
        section.close()
        epochs_of_stages(found.training.epochs, found.stages)
        return found


DETECTOR_RECOVERY: Final = RecoverySettings(
    training=replace(DETECTOR_BASELINE, epochs=30, rate=0.01),
    calibration_images=64,
)
"""Recovery of a detector."""


def section_of(texts: str | Iterable[str] = (), **values: Any) -> Section:
    """Settings given in Python or as `key.subkey=value` texts, whose values are JSON or words.

    Raises:
        InputError: a text has another form, or names a key below something that is no mapping.
    """
    tree: dict[str, Any] = {k: as_stated(v) for k, v in values.items() if v is not None}
    origins: dict[tuple[str, ...], Origin] = {(): Origin("settings")}
    for text in each(texts):
        keys, raw = read_assignment(text)
        origins[keys] = Origin(f"--set {'.'.join(keys)}")
        put_value(tree, keys, _value(raw))
    return Section(tree, origins)


def _value(raw: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.strip()


def find_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `auto` is the first CUDA device where there is one, otherwise the processor; `cuda`
            is PyTorch's current one.

    Returns:
        A device that says its index, as those of tensors do.

    Raises:
        InputError: the name is unknown, or there is no such device here.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if found else "cpu")
    if not re.fullmatch("cpu|cuda(:[0-9]{1,9})?", name):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, but is '{name}'; correct it")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= found:
        raise InputError(
            f"device must exist, but is '{name}' and there are {found} CUDA devices here; "
            "choose another or 'auto'"
        )
    if kind == "cuda" and not index:
        started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        index = str(torch.cuda.current_device()) if started else "0"
    return torch.device(kind, int(index)) if index else torch.device(kind)


def title_of(device: torch.device) -> str:
    """A device as readers know it, such as `cuda:0 (NVIDIA H200)`."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether products are computed in bfloat16; `auto` says so where a device has it."""
    return has_bfloat16(device) if precision == "auto" else precision == "bfloat16"
