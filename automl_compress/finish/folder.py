"""The folder of one recovered network: its state, what it is worth, and a training's checkpoints.

`report.recovered` reads what is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import StudyError
from automl_compress.ledger import RECOVERED
from automl_compress.report.recovered import DOCUMENT, NEW
from automl_compress.space import Policy

NETWORK: Final = "network.safetensors"
CHECKPOINT: Final = "training.checkpoint"


def folder_of(study: Path, policy: Policy) -> Path:
    """Where a policy's trained network lies.

    Args:
        study: the study's folder.
        policy: of one of its networks.
    """
    return study / RECOVERED / policy.key


def recovered_file(study: Path, policy: Policy, option: str = "'recovered'") -> Path:
    """The file of a policy's trained network.

    Args:
        study: the study's folder.
        policy: of one of its networks.
        option: who asks.

    Raises:
        StudyError: it was not recovered.
    """
    path = folder_of(study, policy) / NETWORK
    finish_writing(path.parent)
    if not path.is_file():
        raise StudyError(
            f"{option} needs a network that was trained, but '{study}' has none of the key "
            f"{policy.key}; recover its 'point:{policy.key}' first"
        )
    return path


def how_recovered(place: Path) -> tuple[Mapping[str, Any], int]:
    """The settings of a network's last training, and the epochs of all.

    Raises:
        StudyError: the document is missing or broken.
    """
    document = place / DOCUMENT
    try:
        data = json.loads(document.read_text(encoding="utf-8"))
        epochs = int(data["settings"]["training"]["epochs"]) + int(data["earlier_epochs"])
        return data["settings"], epochs
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise StudyError(
            f"'{document}' must say how a network was recovered, but is broken; remove it"
        ) from reason


def finish_writing(place: Path) -> bool:
    """Put a network that was written, and what it is worth, in their places.

    The new document stands beside the old one from when both are written until the network is in
    its place and the training's state is removed. What was stopped in between is made up for here,
    so that network and document do not contradict each other.

    Args:
        place: a network's folder.

    Returns:
        Whether there was something to do.
    """
    network, document = (place / (name + NEW) for name in (NETWORK, DOCUMENT))
    if not document.exists():
        return False
    if network.exists():
        network.replace(place / NETWORK)
    remove_checkpoints(place)
    document.replace(place / DOCUMENT)
    return True


def remove_checkpoints(place: Path) -> None:
    """Remove the states of trainings that lie in a folder."""
    for path in place.glob(f"{CHECKPOINT}*"):
        path.unlink()
