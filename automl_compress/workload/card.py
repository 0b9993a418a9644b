"""The card beside trained weights: how they came about, and what a sweep says to search them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import InputError

CARD_VERSION: Final = 1


def card_path(weights: Path) -> Path:
    """Where the card of a file of weights lies."""
    return weights.with_suffix(".json")


def read_card(weights: Path) -> dict[str, Any] | None:
    """The card beside a file of weights; None where there is none.

    Raises:
        InputError: it is broken, or of a newer version.
    """
    path = card_path(weights)
    if not path.is_file():
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise InputError(
            f"'{path}' must be the card of '{weights.name}', but is broken; remove it"
        ) from reason
    if not isinstance(card, dict) or not {"version", "training"} <= card.keys():
        return None  # somebody else's file
    if not isinstance(card["version"], int) or card["version"] > CARD_VERSION:
        raise InputError(
            f"the version of '{path}' must be at most {CARD_VERSION}, but is {card['version']}; "
            "use a newer automl-compress"
        )
    return card


def card_data(weights: Path | None) -> dict[str, Any]:
    """What a sweep says below `data` to search weights as they were trained, if their card tells.

    Empty where there is no card, or one of other weights.

    Raises:
        InputError: the card is broken, or of a newer version.
    """
    card = read_card(weights) if weights is not None and weights.is_file() else None
    if card is None or weights is None or card.get("sha256") != _hash(weights):
        return {}
    workload = card.get("workload")
    data = workload.get("data") if isinstance(workload, dict) else None
    return dict(data) if isinstance(data, dict) else {}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
