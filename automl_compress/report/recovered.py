"""Networks of a study that were trained after the search, as its folder holds them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import StudyError
from automl_compress.evaluate import quality_name
from automl_compress.ledger import RECOVERED
from automl_compress.space import Policy

DOCUMENT: Final = "recovered.json"
NEW: Final = ".new"
"""Behind the names of network and document until both are written."""
VERSION: Final = 1


@dataclass(frozen=True)
class RecoveredNetwork:
    """One of them.

    Args:
        policy: what it was built by.
        finalist: the finalist's number in the report; None for another point.
        costs: metrics by name, in their units.
        original: quality of the uncompressed network by split, in [0, 1]; where sparsity training
            made it, of the sparsified one.
        before: the compressed network's before training.
        after: and after it.
        tested: quality after training on the test images by name, with its standard error where
            that was not counted.
        test_images: how many the qualities on `test` were measured on.
        epochs: of all its trainings.
        seconds: the last run of the last of them took.
        device: it ran on.
    """

    policy: Policy
    finalist: int | None
    costs: Mapping[str, float]
    original: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    tested: Mapping[str, float]
    test_images: int
    epochs: int
    seconds: float
    device: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RecoveredNetwork:
        """What `recovered.json` says."""
        name = quality_name(data)
        quality = data[name]
        return cls(
            policy=Policy.from_dict(data["policy"]),
            finalist=data["finalist"],
            costs=data["costs"],
            original=quality["original"],
            before=quality["before"],
            after=quality["after"],
            tested={name: quality["after"]["test"], **data.get("standard_error", {})},
            test_images=int(data["images"]["test"]),
            epochs=int(data["settings"]["training"]["epochs"]) + int(data["earlier_epochs"]),
            seconds=float(data["seconds"]),
            device=str(data["device"]),
        )


def recovered_networks(folder: Path, fingerprints: Collection[str]) -> tuple[RecoveredNetwork, ...]:
    """All recovered networks of a study, the smallest first.

    A new document is complete where it stands: what kept it from its place, as `kill -9` may, kept
    it from nothing else, and the network beside it is the one that it describes.

    Args:
        folder: the study's.
        fingerprints: the study's, of which the networks must have come from one.

    Raises:
        StudyError: a document is broken, newer than this program, or another study's.
    """
    places = (folder / RECOVERED).glob(f"*/{DOCUMENT}*")
    whole = (path for path in places if path.name in (DOCUMENT, DOCUMENT + NEW))
    documents = sorted({path.with_name(DOCUMENT) for path in whole})
    found = [_read(path, fingerprints) for path in documents]
    return tuple(sorted(found, key=lambda n: (n.costs["size_bytes"], n.policy.key)))


def _newest(path: Path) -> str:
    """The text of a document, or of the new one in front of its place."""
    try:
        return path.with_name(path.name + NEW).read_text(encoding="utf-8")
    except FileNotFoundError:  # the rule; a recovery may also have just put it there
        return path.read_text(encoding="utf-8")


def _read(path: Path, fingerprints: Collection[str]) -> RecoveredNetwork:
    try:
        data = json.loads(_newest(path))
        version, study = data["version"], data["study"]
        network = RecoveredNetwork.from_dict(data) if version <= VERSION else None
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise StudyError(
            f"'{path}' must describe a recovered network, but is broken; remove it and recover "
            "again"
        ) from reason
    if network is None:
        raise StudyError(
            f"the version of '{path}' must be at most {VERSION}, but is {version}; use a newer "
            "automl-compress"
        )
    if study not in fingerprints:
        raise StudyError(
            f"'{path}' must be of this study, but is another's; move it out of the folder"
        )
    return network
