"""A workload: a trained network, its data and its task, checked to belong together."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl_compress.errors import WorkloadError
from automl_compress.settings import LARGEST_SEED, REQUIRED, Origin, Section, as_stated, shown
from automl_compress.user_code import is_factory, user_code
from automl_compress.workload.box_task import BoxTask
from automl_compress.workload.card import card_data
from automl_compress.workload.data import DataConfig, channel_numbers, existing
from automl_compress.workload.detection import EXTRA, Detection, strides_of
from automl_compress.workload.digits_training import DEFAULT_EPOCHS, train_digits
from automl_compress.workload.images import ImageSet, Normalization
from automl_compress.workload.models import (
    MODELS,
    check_model_name,
    construct_model,
    fitting,
    fixed_parameters,
    frozen,
)
from automl_compress.workload.sources import TrainTest
from automl_compress.workload.splits import Splits, load_normalization, splits_of
from automl_compress.workload.task import CLASSIFICATION, Task, shown_output
from automl_compress.workload.torch_modes import usual_modes
from automl_compress.workload.torchvision_detectors import SingleStage, looking_once
from automl_compress.workload.user_data import MemorySource
from automl_compress.workload.weights import check_there, load_weights
from automl_compress.workload.wrappers import unwrapped


@dataclass(frozen=True)
class WorkloadConfig:
    """What a sweep file says about its workload.

    Attributes:
        model: a key of `MODELS` or `package.module:factory`.
        data: its examples.
        model_args: keyword arguments of the constructor or factory.
        weights: file of trained weights; None for a factory that returns a trained network and
            for a shipped network that is trained on the spot.
        seed: decides initial weights and the training of a shipped network.
        epochs: passes over the training images when it is trained on the spot.
    """

    model: str
    data: DataConfig
    model_args: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    seed: int = 0
    epochs: int = DEFAULT_EPOCHS

    @classmethod
    def of(cls, **settings: Any) -> WorkloadConfig:
        """The settings given in Python, by the keys of a sweep file's `workload`.

        Raises:
            WorkloadError: a key is unknown, missing or has a wrong value.
        """
        section = Section(as_stated(settings), {(): Origin("settings")}, (), WorkloadError)
        return cls.from_section(section, Path())

    @classmethod
    def from_section(cls, section: Section, base: Path) -> WorkloadConfig:
        """Read and close the mapping below `workload`.

        Data that it does not name are those of the weights' card; so are mean and std of data that
        it names without them, for they belong to the network's input.

        Args:
            section: the mapping.
            base: folder of the sweep file; relative paths start there, or in the current folder
                if they do not exist there.

        Raises:
            InputError: a key is unknown, missing or has a wrong value.
        """
        model: str = section.get("model", str)
        try:
            check_model_name(model)
        except WorkloadError as error:
            raise section.fail(str(error), "model") from error
        named: str | None = section.get("weights", str, None)
        weights = None if named is None else existing(named, base)
        epochs = DEFAULT_EPOCHS
        if model in MODELS and MODELS[model].trained_here:
            training = section.section("train")
            epochs = training.number("epochs", int, DEFAULT_EPOCHS, low=1)
            training.close()
        config = cls(
            model,
            _data(section, model, base, weights),
            section.section("model_args").plain(),
            weights,
            section.number("seed", int, 0, low=0, high=LARGEST_SEED),
            epochs,
        )
        section.close()
        return config


@dataclass(frozen=True, eq=False)
class Workload:
    """What is compressed.

    Attributes:
        name: the model's name as the user gave it.
        model: trained, on the CPU, in evaluation mode, without gradients.
        splits: examples for calibration and training, for search-validation and for the final test.
        normalization: turns them into network input.
        task: what the network does with an example.
        identity: SHA-256 (hex) over weights, model, splits and normalization.
        arguments: keyword arguments the model was built with.
        fixed: names of the parameters that its factory froze; no training changes them.
    """

    name: str
    model: nn.Module
    splits: Splits
    normalization: Normalization
    identity: str
    task: Task
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fixed: frozenset[str] = frozenset()

    @classmethod
    @usual_modes()
    def of(
        cls,
        model: nn.Module,
        train: Any,
        test: Any,
        *,
        name: str = "",
        classes: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation_from: str = "test",
        validation_images: int | None = None,
        seed: int = 0,
    ) -> Workload:
        """A trained network and its data, at hand in Python.

        Args:
            model: the network, also one of `torch.compile` or parallel training; it is copied.
            train: what it was trained on: a torch map-style data set of (example, label), see
                `FactorySource`, without random augmentation; or an `ImageSet`.
            test: the same of examples it was not trained on.
            name: of the network in reports and files; its class's when not given.
            classes: their names; without, the data sets' or their numbers.
            mean: of each channel of 8-bit examples, on the 0..1 scale, that the network wants
                taken off; 0 when not given.
            std: of each channel, that it wants divided by; 1 when not given.
            validation_from: half that search-validation examples are from: `test`, or `train`
                where the network was not trained on those that the seed picks.
            validation_images: their number, see `DataConfig`.
            seed: decides which images these are.

        Raises:
            WorkloadError: network and data do not fit, or one of them cannot be used.
        """
        stated = {"mean": mean, "std": std, "validation_images": validation_images, "seed": seed}
        model = unwrapped(model) if isinstance(model, nn.Module) else model
        section = _in_python(name=name or type(model).__name__, classes=classes, **stated)
        name = section.get("name", str)
        if name in MODELS or is_factory(name):
            raise WorkloadError(
                f"a network given in Python must not have the name of one that is loaded by name, "
                f"but is to be called '{name}'; give another name"
            )
        data = DataConfig(
            MemorySource(train, test, section.items("classes", str, ())),
            channel_numbers(section, "mean"),
            channel_numbers(section, "std"),
            validation_from,
            section.number("validation_images", int, None),
            section.number("seed", int, low=0, high=LARGEST_SEED),
        )
        with user_code(f"copying model '{name}'", WorkloadError):
            copied = copy.deepcopy(model)
        halves = data.source.load(data.seed)
        return _fitted(WorkloadConfig(name, data), fitting(name, copied), halves)

    def check_unchanged(self) -> None:
        """Check that the network is still the one that the identity names.

        Raises:
            WorkloadError: it was changed in place.
        """
        now = _identity(self.name, self.arguments, self.model, self.splits, self.normalization)
        if now != self.identity:
            raise WorkloadError(
                f"a workload's network must stay as it was, but that of '{self.name}' was changed "
                "after the workload was made; make a new one of it: Workload.of(network, train, "
                "test)"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return self.splits.classes

    @usual_modes()
    def example_input(self) -> torch.Tensor:
        """The first training example as network input, (1, ...) float32."""
        return self.splits.train.tensor(self.normalization, 0, 1)


def _in_python(**values: Any) -> Section:
    """What was given in Python, by name; nothing for what was left out."""
    plain = {key: v.tolist() if hasattr(v, "tolist") else v for key, v in values.items()}
    given = {key: value for key, value in plain.items() if value is not None or key == "seed"}
    return Section(given, {(): Origin("Workload.of")}, (), WorkloadError)


@usual_modes()
def load_workload(config: WorkloadConfig) -> Workload:
    """Build the network, load or train its weights, load its data, and check that they fit.

    Args:
        config: see `WorkloadConfig.of`.

    Raises:
        WorkloadError: one of them cannot be had, they do not fit, or the network would be
            untrained.
    """
    if not isinstance(config, WorkloadConfig):
        raise WorkloadError(
            f"a workload is loaded from a WorkloadConfig, but was given {shown(config)}; make one "
            "by WorkloadConfig.of(model=...), or a workload of a network by Workload.of"
        )
    spec = MODELS.get(config.model)
    if spec is not None and not spec.trained_here and config.weights is None:
        raise WorkloadError(
            f"an untrained network cannot be searched, but '{config.model}' has no weights; "
            f"add workload.weights: FILE"
        )
    workload = load_untrained(config)
    if spec is None or config.weights is not None:
        return workload
    model, splits, normalization = workload.model, workload.splits, workload.normalization
    model.requires_grad_(True)
    train_digits(model, splits.train, normalization, epochs=config.epochs, seed=config.seed)
    return _workload(config, frozen(model), splits, normalization)


def load_untrained(config: WorkloadConfig) -> Workload:
    """Load a workload whose weights may be untrained: from the file, the factory or the first draw.

    Raises:
        WorkloadError: network or data cannot be had, or they do not fit.
    """
    halves = config.data.source.load(config.data.seed)
    model = construct_model(config.model, _arguments(config, halves.classes), config.seed)
    return _fitted(config, model, halves)


def _fitted(config: WorkloadConfig, model: nn.Module, halves: TrainTest) -> Workload:
    """A network with the weights of its file and examples, once it is seen that they fit."""
    fixed = fixed_parameters(model)
    frozen(model)
    if isinstance(model, SingleStage) and (config.data.mean or config.data.std):
        raise WorkloadError(
            f"model '{config.model}' normalizes images itself, but data.mean or data.std is given; "
            f"remove it"
        )
    if config.weights is not None:
        load_weights(model, config.weights)
    splits = splits_of(_as_taken(model, halves), config.data)
    normalization = load_normalization(config.data, splits.train)
    example = splits.train.tensor(normalization, 0, 1)
    task = _task(config.model, model, splits)
    images = splits.train.are_images
    what = f"model '{config.model}' on an {'image' if images else 'example'} {splits.train.shape}"
    remedy = "correct it, data.channels or data.image_size" if images else "correct it or the data"
    with user_code(what, WorkloadError, remedy), torch.no_grad():
        output = model(example)
    task.check_output(config.model, output, len(splits.classes))
    _check_batches(config.model, model, example)
    return _workload(config, model, splits, normalization, fixed)


def _as_taken(model: nn.Module, halves: TrainTest) -> TrainTest:
    """The examples as a network takes them: grey images (h, w) with their channel axis, if it can.

    A network of signals fails on (1, h, w), or does not answer as a classifier does.
    """
    if not halves.bare:
        return halves
    images = halves.as_images()
    two = images.train.take([0, 0]).tensor(Normalization.unit(1))
    try:
        with user_code("an image", WorkloadError), torch.no_grad():
            output = model(two)
    except WorkloadError:
        return halves
    answers = isinstance(output, torch.Tensor) and output.dim() == 2 and len(output) == 2
    return images if answers else halves


def _check_batches(name: str, model: nn.Module, example: torch.Tensor) -> None:
    """Check that a network takes several examples at once.

    Raises:
        WorkloadError: it does not.
    """
    with user_code(f"model '{name}' on two examples at once", WorkloadError), torch.no_grad():
        output = model(torch.cat([example, example]))
    if len(output) != 2:
        raise WorkloadError(
            f"model '{name}' must give an answer for every example, but for two returned "
            f"{shown_output(output)}; keep the batch axis as it is"
        )


def _arguments(config: WorkloadConfig, classes: Sequence[str]) -> dict[str, Any]:
    """What the constructor is called with; a shipped network is told the number of classes."""
    told = {"num_classes": len(classes)} if config.model in MODELS else {}
    return {**told, **config.model_args}


def _workload(
    config: WorkloadConfig,
    model: nn.Module,
    splits: Splits,
    normalization: Normalization,
    fixed: frozenset[str] = frozenset(),
) -> Workload:
    args = _arguments(config, splits.classes)
    identity = _identity(config.model, args, model, splits, normalization)
    task = _task(config.model, model, splits)
    return Workload(config.model, model, splits, normalization, identity, task, args, fixed)


def task_of(model: nn.Module, images: ImageSet, example: torch.Tensor) -> Task:
    """What examples with such labels ask of a network.

    Args:
        model: the network.
        images: with their labels.
        example: (1, ...) one of them as network input.

    Raises:
        WorkloadError: they have boxes, but the network is no detector or knows fewer classes.
    """
    if not images.boxed:
        return CLASSIFICATION
    name, (_, height, width) = type(model).__name__, images.shape
    task: BoxTask
    if isinstance(model, SingleStage):
        task = model.detection(name, (height, width))
    elif looking_once(model) is not model:
        raise WorkloadError(
            f"of a detector of torchvision, the network inside is compressed, but {name} was given "
            f"itself; take that of a workload, Workload.of(network, train, test).model"
        )
    else:
        strides = strides_of(model, name)
        with torch.no_grad():
            classes = model(example).shape[1] - EXTRA
        task = Detection(classes, (height, width), strides)
    largest = int(images.labels[..., 4].max())
    if largest >= task.classes:
        raise WorkloadError(
            f"classes of boxes must be those of the network, 0..{task.classes - 1}, but reach up "
            f"to {largest}; number them from 0, without one for no class"
        )
    return task


def _task(name: str, model: nn.Module, splits: Splits) -> Task:
    if not splits.train.boxed:
        return CLASSIFICATION
    _, height, width = splits.train.shape
    if isinstance(model, SingleStage):
        return model.detection(name, (height, width))
    return Detection(len(splits.classes), (height, width), strides_of(model, name))


def _data(section: Section, model: str, base: Path, weights: Path | None) -> DataConfig:
    """The data a sweep names; of what it leaves out, what the weights' card says.

    Args:
        section: the workload's.
        model: its name.
        base: folder that relative paths start at.
        weights: the file of weights, whose card may name the data.

    Raises:
        InputError: data or the weights that may name them are missing, or a value is wrong.
    """
    trained = card_data(weights)
    card = Section(trained, {(): Origin("the weights' card")}, ("data",), WorkloadError)
    if trained and "data" not in section:
        return DataConfig.from_section(card, base)
    default = MODELS[model].data if model in MODELS else ""
    if weights is not None and "data" not in section and not default:
        check_there(weights)  # its card would name them
    value = section.get("data", (str, dict), default or REQUIRED)
    if isinstance(value, dict):
        return DataConfig.from_section(section.section("data"), base).normalized_as(card)
    try:
        return DataConfig.from_name(value).normalized_as(card)
    except WorkloadError as error:
        raise section.fail(str(error), "data") from error


def _identity(
    name: str,
    args: Mapping[str, Any],
    model: nn.Module,
    splits: Splits,
    normalization: Normalization,
) -> str:
    description = {
        "model": name,
        "args": args,
        "modules": [(path, type(module).__qualname__) for path, module in model.named_modules()],
        "splits": [one.content_hash for one in (splits.train, splits.validation, splits.test)],
        "classes": splits.classes,
        "normalization": [normalization.mean, normalization.std],
    }
    digest = hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode())
    for key, value in (model.state_dict() | dict(model.named_buffers())).items():
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
