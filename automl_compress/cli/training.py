"""Training a network from scratch, or towards sparsity, and leaving its weights with a card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from automl_compress.cli.options import check_output
from automl_compress.cli.training_progress import TrainingProgress
from automl_compress.errors import InputError, WorkloadError
from automl_compress.evaluate import QUALITIES
from automl_compress.recover import (
    BASELINE,
    DETECTOR_BASELINE,
    DETECTOR_SPARSITY,
    SPARSITY,
    SparsitySettings,
    TrainingSettings,
    find_device,
    section_of,
    title_of,
    train_network,
)
from automl_compress.recover.fixed import untrained_parts
from automl_compress.recover.losses import labels_loss
from automl_compress.settings import LARGEST_SEED, Section
from automl_compress.workload import (
    BOXED,
    MODELS,
    DataConfig,
    Workload,
    WorkloadConfig,
    card_data,
    card_path,
    channel_statistics,
    check_model_name,
    layout_of,
    load_untrained,
    read_card,
    trained_normalization,
)


def train_baseline(
    model: str, data: str | None, output: Path, overrides: Sequence[str], *, force: bool
) -> None:
    """Train a network from its initial weights, and write weights and card.

    Raises:
        InputError: an argument is wrong; nothing is written.
    """
    section = section_of(overrides, data=_data(data, model))
    config, stated = _config(model, None, section)
    boxed = isinstance(config.data.source, BOXED)
    settings = (DETECTOR_BASELINE if boxed else BASELINE).read(section)
    section.close()
    _train(config, stated, settings, None, output, force)


def sparsify(
    model: str,
    weights: Path,
    data: str | None,
    output: Path,
    overrides: Sequence[str],
    *,
    force: bool,
) -> None:
    """Train on with a penalty that drives channels towards zero, and write weights and card.

    Data that are not named are those of the weights' card, and others are normalised as those.

    Raises:
        InputError: an argument is wrong; nothing is written.
    """
    known = (read_card(weights) or {}).get("workload", {})
    trained = card_data(weights)
    named = _data(data, model) if data or not trained else trained
    section = section_of(overrides, data=named, model_args=known.get("model_args"))
    config, stated = _config(model, weights, section)
    config = replace(config, data=config.data.normalized_as(section_of(**trained)))
    sparsity = SparsitySettings.read(section)
    boxed = isinstance(config.data.source, BOXED)
    settings = (DETECTOR_SPARSITY if boxed else SPARSITY).read(section)
    section.close()
    _train(config, stated, settings, sparsity, output, force)


def _data(name: str | None, model: str) -> dict[str, Any]:
    """What a sweep file would say about data that are named by one word."""
    if name is None:
        name = MODELS[model].data if model in MODELS else ""
        if not name:
            raise WorkloadError(
                f"--data must be given for '{model}'; add --data FOLDER (of classes, or in VOC or "
                "COCO layout), CIFAR10 or CIFAR100"
            )
    if name in ("CIFAR10", "CIFAR100"):
        return {"torchvision": name}
    if name == "digits":
        return {"digits": True}
    if ":" in name and not Path(name).is_dir():
        return {"factory": name}
    if not Path(name).is_dir():
        raise WorkloadError(
            "--data must name a folder, CIFAR10, CIFAR100, digits or a function (module:name), but "
            f"there is no folder '{name}'; correct it"
        )
    layout = layout_of(Path(name))
    if layout == "root":
        return {"root": name}
    shape = MODELS[model].input_shape if model in MODELS else ()
    return {layout: name, **({"image_size": list(shape[1:])} if shape else {})}


def _config(
    model: str, weights: Path | None, section: Section
) -> tuple[WorkloadConfig, dict[str, Any]]:
    """The workload's settings, as objects and as a sweep file states its data."""
    check_model_name(model)
    arguments = section.section("model_args").plain()
    data = section.section("data")
    validation = {"from": "train", **data.section("search_validation").plain()}
    if validation["from"] != "train":
        raise InputError(
            "data.search_validation.from must be train, so that the held-out examples are never "
            f"trained on, but is {validation['from']}; remove it"
        )
    stated: dict[str, Any] = {"seed": 0, **data.plain(), "search_validation": validation}
    config = WorkloadConfig(
        model,
        DataConfig.from_section(section_of(**stated), Path()),
        arguments,
        weights,
        section.number("seed", int, 0, low=0, high=LARGEST_SEED),
    )
    return config, stated


def _load(config: WorkloadConfig, stated: dict[str, Any]) -> tuple[Workload, dict[str, Any]]:
    """The workload, and what a sweep file must say to search it."""
    loaded = load_untrained(config)
    splits, scales_itself = loaded.splits, loaded.task.blank is not None
    labels_loss(loaded.task)  # or says why not
    if config.data.mean is None and not scales_itself and splits.train.images.dtype == np.uint8:
        known = trained_normalization(config.data, splits.train)
        mean, std = (known.mean, known.std) if known else channel_statistics(splits.train)
        stated.update(mean=list(mean), std=list(std))
        config = replace(config, data=replace(config.data, mean=mean, std=std))
    stated["search_validation"]["images"] = len(splits.validation)
    for key in ("root", "voc", "coco"):
        if key in stated:
            stated[key] = str(Path(stated[key]).absolute())
    described: dict[str, Any] = {"model": config.model, "data": stated}
    if config.model_args:
        described["model_args"] = dict(config.model_args)
    return load_untrained(config), described


def _train(
    config: WorkloadConfig,
    stated: dict[str, Any],
    settings: TrainingSettings,
    sparsity: SparsitySettings | None,
    output: Path,
    force: bool,
) -> None:
    _check_files(output, force=force)
    device = find_device(settings.device)
    workload, described = _load(config, stated)
    print(
        f"{workload.name}: {len(workload.splits.train):,} training examples, "
        f"{len(workload.splits.validation):,} held out, on {title_of(device)}",
        flush=True,
    )
    for line in untrained_parts(workload):
        print(line, flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = output.with_name(output.name + ".checkpoint")
    trained = train_network(workload, settings, sparsity, checkpoint, TrainingProgress())
    described["weights"] = output.name
    trained = replace(trained, card={**trained.card, "workload": described})
    trained.write(output)
    checkpoint.unlink(missing_ok=True)
    name = workload.task.quality
    found = trained.card[name]
    print(
        f"{output}: {QUALITIES[name]} {found['held_out']:.2%} on the held-out examples, "
        f"{found['test']:.2%} on the test examples"
    )
    said = json.dumps({**described, "weights": str(output)})
    print(f"a sweep that searches it, on examples it was not trained on, says\nworkload: {said}")


def _check_files(output: Path, *, force: bool) -> None:
    """Check that weights can be written, and their card beside them."""
    if output.suffix != ".safetensors":
        raise InputError(f"-o must end in .safetensors, but is '{output}'; correct it")
    check_output(output, force=force)
    card = card_path(output)
    if card.is_dir() or (card.exists() and not force):
        raise InputError(
            f"the card beside -o must not exist yet, but '{card}' does; choose another name or "
            "give --force to replace a file"
        )
