"""Stages around a search, stated in the same sweep file: from sparse weights to exported files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from automl_compress.deploy.formats import FORMATS
from automl_compress.recover import (
    DETECTOR_RECOVERY,
    DETECTOR_SPARSITY,
    SPARSITY,
    RecoverySettings,
    SparsitySettings,
    TrainingSettings,
)
from automl_compress.settings import Section, suggestion


@dataclass(frozen=True)
class SparsifyStage:
    """Sparsity training before the search.

    Args:
        sparsity: what drives channels towards zero.
        training: the training loop's settings.
    """

    sparsity: SparsitySettings
    training: TrainingSettings


@dataclass(frozen=True)
class PipelineSettings:
    """What is done before and after a search.

    Args:
        sparsify: the first stage; None searches the weights as they are.
        picks: rules of the networks that go on, see `report.pick_network`.
        distill: trains them without grids, from the network that was searched; None leaves
            distillation to the next stage.
        quantize: trains them with their grids.
        formats: of the files they are exported to, see `deploy.formats`.
        stated: the stages as the sweep file states them, defaults not filled in.
    """

    sparsify: SparsifyStage | None
    picks: tuple[str, ...]
    distill: RecoverySettings | None
    quantize: RecoverySettings
    formats: tuple[str, ...]
    stated: dict[str, Any]


def read_pipeline(outer: Section, boxed: bool = False) -> PipelineSettings | None:
    """Read the mapping below `pipeline`, if there is one.

    Args:
        outer: the sweep.
        boxed: whether a detector is trained, which decides what settings are when not given.

    Raises:
        InputError: a key or value is wrong.
    """
    if "pipeline" not in outer:
        return None
    outer.get("pipeline", dict)
    section = outer.section("pipeline")
    full = DETECTOR_RECOVERY if boxed else RecoverySettings()
    settings = PipelineSettings(
        sparsify=_sparsify(section, DETECTOR_SPARSITY if boxed else SPARSITY),
        picks=section.items("pick", str, ("knee",)),
        distill=_recovery(section, "distill", full),
        quantize=_recovery(section, "quantize", full) or full,
        formats=section.items("export", str, ("packed",)),
        stated=section.values(),
    )
    section.close()
    for name in settings.formats:
        if name not in FORMATS:
            raise section.fail(
                f"'pipeline.export' must hold formats among {', '.join(FORMATS)}, but holds "
                f"'{name}'{suggestion(name, FORMATS)}; correct it",
                "export",
            )
    return settings


def _sparsify(outer: Section, default: TrainingSettings) -> SparsifyStage | None:
    if "sparsify" not in outer:
        return None
    section = outer.section("sparsify")
    stage = SparsifyStage(SparsitySettings.read(section), default.read(section))
    section.close()
    return stage


def _recovery(outer: Section, key: str, default: RecoverySettings) -> RecoverySettings | None:
    return RecoverySettings.from_section(outer.section(key), default) if key in outer else None
