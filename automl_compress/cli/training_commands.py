"""The commands that train: their arguments, and what they print at the end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from automl_compress.cli.options import add_overrides_option


def add_training_commands(subparsers: Any) -> None:
    """Add `recover`, `train` and `sparsify`."""
    parser = subparsers.add_parser("recover", help="train networks of a study to be accurate again")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument(
        "--pick",
        action="append",
        required=True,
        metavar="RULE",
        dest="rules",
        help="knee, point:ID, or limits such as 'size<=200kB,macs<=0.5x'; all but point:ID also "
        "keep the study's constraints as tested; may be given again",
    )
    parser.add_argument(
        "--asha",
        action="store_true",
        help="train all picks side by side on Ray, and stop early those that lag behind",
    )
    parser.add_argument(
        "--further",
        action="store_true",
        help="go on from the networks that were recovered, for another N epochs",
    )
    _add_options(parser)
    parser.set_defaults(run=_recover)

    parser = subparsers.add_parser("train", help="train a network from scratch")
    _add_network(parser)
    parser.set_defaults(run=_train)

    parser = subparsers.add_parser(
        "sparsify", help="train a network on so that more of it can be cut"
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE")
    _add_network(parser)
    parser.set_defaults(run=_sparsify)


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a shipped name or package.module:factory")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="a folder {train,test}/<class>/*, or with boxes in Pascal VOC's or COCO's layout; "
        "CIFAR10, CIFAR100 or package.module:function",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    add_overrides_option(
        parser, "another setting, such as rate=0.05, batch=64 or augment.flip=false"
    )
    parser.add_argument("--force", action="store_true", help="replace what exists")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Overrides, after those that options of their own stand for."""
    options = {"epochs": arguments.epochs, "device": arguments.device}
    stated = [f"{key}={value}" for key, value in options.items() if value is not None]
    return [*stated, *arguments.overrides]


def _recover(arguments: argparse.Namespace) -> int:
    from automl_compress.cli.recovering import recover_networks

    path = recover_networks(
        arguments.folder,
        arguments.rules,
        _overrides(arguments),
        force=arguments.force,
        asha=arguments.asha,
        further=arguments.further,
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
