"""The commands that train: their arguments, and what they print at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from automl_compress.cli.options import (
    add_command,
    add_device_option,
    add_folder,
    add_model,
    add_overrides_option,
)


def add_recover(subparsers: Any) -> None:
    """Add the command `recover`."""
    parser = add_command(
        subparsers, "recover", "train networks of a study until they are accurate again"
    )
    add_folder(parser)
    parser.add_argument(
        "--pick",
        action="append",
        required=True,
        metavar="RULE",
        dest="rules",
        help="knee, point:ID, or limits such as 'size<=200kB,macs<=0.5x'; all but point:ID also "
        "keep the study's constraints as tested; may be given several times",
    )
    parser.add_argument(
        "--asha",
        action="store_true",
        help="train all picks side by side on Ray, and stop early those that lag behind",
    )
    parser.add_argument(
        "--further",
        action="store_true",
        help="go on from the networks that were recovered, for another --epochs",
    )
    _add_options(parser, "30")
    parser.set_defaults(run=_recover)


def add_train(subparsers: Any) -> None:
    """Add the command `train`."""
    parser = add_command(subparsers, "train", "train a network from scratch")
    _add_network(parser)
    _add_options(parser, "200, of detectors 100")
    parser.set_defaults(run=_train)


def add_sparsify(subparsers: Any) -> None:
    """Add the command `sparsify`."""
    parser = add_command(subparsers, "sparsify", "train a network on so that more of it can be cut")
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="where training starts"
    )
    _add_network(parser)
    _add_options(parser, "30")
    parser.set_defaults(run=_sparsify)


def _add_network(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="a folder {train,test}/<class>/*, or with boxes in Pascal VOC's or COCO's layout; "
        "CIFAR10, CIFAR100 or package.module:function",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="where to write the weights; their card, a .json, goes beside them",
    )


def _add_options(parser: argparse.ArgumentParser, epochs: str) -> None:
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"passes over the training examples; default: {epochs}",
    )
    add_device_option(parser)
    add_overrides_option(
        parser,
        "another setting, such as rate=0.05, batch=64 or augment.flip=false; an unknown one is "
        "answered with all there are",
    )
    parser.add_argument("--force", action="store_true", help="replace what exists")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides, after those that options of their own stand for."""
    options = {"epochs": arguments.epochs, "device": arguments.device}
    stated = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*stated, *arguments.overrides]


def _recover(arguments: argparse.Namespace) -> int:
    from automl_compress.cli.terminal import TERMINAL
    from automl_compress.finish import recover_networks

    path = recover_networks(
        arguments.folder,
        arguments.rules,
        _overrides(arguments),
        force=arguments.force,
        asha=arguments.asha,
        further=arguments.further,
        audience=TERMINAL,
    )
    print(f"\nreport: {path}")
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from automl_compress.cli.training import train_baseline

    train_baseline(
        arguments.model,
        arguments.data,
        arguments.output,
        _overrides(arguments),
        force=arguments.force,
    )
    return 0


def _sparsify(arguments: argparse.Namespace) -> int:
    from automl_compress.cli.training import sparsify

    sparsify(
        arguments.model,
        arguments.weights,
        arguments.data,
        arguments.output,
        _overrides(arguments),
        force=arguments.force,
    )
    return 0
