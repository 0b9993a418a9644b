"""The formats a study's networks can be exported in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from automl_compress.deploy.packed import load_packed, save_packed
from automl_compress.deploy.state import load_state, save_state
from automl_compress.errors import DeployError
from automl_compress.settings import suggestion
from automl_compress.space import Policy


@dataclass(frozen=True)
class Source:
    """Where a network to export comes from.

    Args:
        policy: what it was built by.
        example_input: (1, channels, height, width), or whatever the network takes.
        architecture: the original network's name for `build_model`.
        arguments: keyword arguments of the architecture.
    """

    policy: Policy
    example_input: Tensor
    architecture: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """How networks are written in one format and run from it.

    Args:
        save: writes a network whole or not at all; gives the bytes on disk.
        load: reads a file into something that maps inputs to outputs, given the original network.
    """

    save: Callable[[nn.Module, Path, Source], int]
    load: Callable[[Path, nn.Module], Callable[[Tensor], Tensor]]


def _save_packed(network: nn.Module, path: Path, source: Source) -> int:
    return save_packed(
        network,
        path,
        source.policy,
        architecture=source.architecture,
        arguments=source.arguments,
    )


def _save_state(network: nn.Module, path: Path, source: Source) -> int:
    return save_state(
        network,
        path,
        source.policy,
        architecture=source.architecture,
        arguments=source.arguments,
    )


FORMATS: Final[dict[str, Format]] = {
    "packed": Format(_save_packed, load_packed),
    "torch": Format(_save_state, load_state),
}


def export_format(name: str) -> Format:
    """The format of a name.

    Raises:
        DeployError: there is none.
    """
    if name not in FORMATS:
        raise DeployError(
            f"--format must be one of {', '.join(FORMATS)}, but is '{name}'"
            f"{suggestion(name, FORMATS)}; choose one of them"
        )
    return FORMATS[name]
