"""Stages of one folder, each with a note of what it was given, so that what is done is skipped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import StudyError
from automl_compress.finish.audience import Audience
from automl_compress.finish.folder import CHECKPOINT, remove_checkpoints
from automl_compress.ledger import write_text

NOTES: Final = "pipeline.json"
_MADE: Final = " made"
"""Behind a stage's name, where the notes hold the SHA-256 of its file."""


@dataclass(frozen=True)
class Stages:
    """The stages of one folder, and what each was given.

    Args:
        folder: the study's.
        audience: hears what is done.
    """

    folder: Path
    audience: Audience

    def run(
        self,
        name: str,
        title: str,
        inputs: Mapping[str, Any],
        output: Path,
        work: Callable[[], None],
    ) -> None:
        """Do a stage's work unless it is done.

        Args:
            name: of the stage, in the notes.
            title: what it is called where it is told of.
            inputs: everything that decides its result, plain JSON.
            output: file it leaves at its end.
            work: does it, and goes on from the checkpoints of `checkpoint_of(output)`.
        """
        same = self.was_given(name, inputs)
        if same and output.exists():
            self._check_own(name, title, output)
            self.audience.say(f"{title}: done before, from the same inputs")
            return
        self.audience.say(f"{title} ...")
        output.unlink(missing_ok=True)
        if not same:
            remove_checkpoints(output.parent)
        self.give(name, inputs)
        work()
        self._note(f"{name}{_MADE}", content(output))
        remove_checkpoints(output.parent)

    def was_given(self, name: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a stage was given the same when it last ran."""
        return self._notes().get(name) == _digest(inputs)

    def give(self, name: str, inputs: Mapping[str, Any]) -> None:
        """Note what a stage is given."""
        self._note(name, _digest(inputs))

    def _check_own(self, name: str, title: str, output: Path) -> None:
        """Check that a stage's file is what the stage made.

        Raises:
            StudyError: another command replaced it.
        """
        made = self._notes().get(f"{name}{_MADE}")
        if made is not None and made != content(output):
            raise StudyError(
                f"a finished stage's file must be what it made, but '{output}' of '{title}' was "
                "replaced; remove it to make it again, or keep it and export it with 'recovered'"
            )

    def _note(self, name: str, what: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / NOTES, json.dumps({**self._notes(), name: what}, indent=1) + "\n")

    def _notes(self) -> dict[str, str]:
        path = self.folder / NOTES
        if not path.exists():
            return {}
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): str(given) for name, given in notes.items()}
        except (OSError, ValueError, AttributeError) as reason:
            raise StudyError(
                f"'{path}' must hold what the stages were given, but is broken; remove it to run "
                "them again"
            ) from reason


def checkpoint_of(output: Path) -> Path:
    """Where the state of a training lies that makes a file."""
    return output.with_name(CHECKPOINT)


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def content(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
