"""Every error this package raises on purpose.

CompressError
├── InputError (ValueError)         what the user gave is wrong; the command line exits with 2
│   ├── SpaceError                  a gene, space, policy or search-space file
│   ├── WorkloadError               a model, its weights or its data
│   │   └── TraceError              a network whose structure cannot be followed
│   ├── StudyError                  a sweep file, a study's settings or its folder
│   ├── OtherTrainingError          a checkpoint of another network, other data or other settings
│   └── DeployError                 a file of a compressed network, or what to make of it
├── EstimateError (RuntimeError)    a candidate that cannot be measured; becomes a failed evaluation
├── EngineError (RuntimeError)      a run that cannot go on; the command line exits with 1
└── InterruptedStudy (RuntimeError) stopped by the user with its state saved; exits with 130

A message says the rule, the value received and the remedy, in one line.
"""

from __future__ import annotations

from pathlib import Path


class CompressError(Exception):
    """Root of the errors this package raises on purpose."""


class InputError(CompressError, ValueError):
    """What the user gave is wrong; the message names the rule, the value and the remedy."""


class SpaceError(InputError):
    """A gene, search space, policy or search-space file is wrong."""


class WorkloadError(InputError):
    """A model, its weights or its data cannot be used."""


class TraceError(WorkloadError):
    """The structure of a network cannot be followed."""


class StudyError(InputError):
    """A sweep file, a study's settings or its folder is wrong."""


class OtherTrainingError(InputError):
    """A checkpoint is of another network, other data or other settings."""


class DeployError(InputError):
    """A file of a compressed network cannot be written or read."""


class EstimateError(CompressError, RuntimeError):
    """A candidate cannot be measured; estimators turn this into a failed evaluation."""


class EngineError(CompressError, RuntimeError):
    """A run cannot go on."""


class InterruptedStudy(CompressError, RuntimeError):
    """The user stopped a study; what is finished is saved."""


def nothing_found(need: str, folder: Path, *, finished: bool) -> StudyError:
    """What to raise where a study's networks are needed, but none is on its front.

    Args:
        need: the rule, such as `a pick needs a network that was found`.
        folder: the study's.
        finished: whether the study is, so that there is nothing to resume.
    """
    remedy = f"go on with 'resume {folder}'"
    if finished:
        remedy = (
            f"go on beyond its end with 'extend {folder} --evaluations N', or search again with "
            "looser constraints"
        )
    return StudyError(f"{need}, but '{folder}' has none; {remedy}")
