"""The fidelity ladder: estimators between the cheap one of the search and the final test.

A rung measures better and costs more than the one before it. When the race is over, candidates
climb: each rung measures what the one before it liked best, by successive halving over the front
(Jamieson and Talwalkar 2016, for many objectives: whole fronts, the best first).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.compress import REPAIRS, Repair
from automl_compress.engine.trained import TrainedEstimator, TrainSettings
from automl_compress.evaluate import LOSSES
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.pareto import Reference, front_mask, spread_subset
from automl_compress.settings import Section
from automl_compress.workload import Workload

SEARCH: Final = "search"
"""The rung that the race runs on."""
_RESERVED: Final = (SEARCH, "test", "finalists", "latencies")


@dataclass(frozen=True)
class RungSettings:
    """One rung, as a sweep file states it.

    Args:
        name: of the rung.
        keep: share of what it measures that goes on to the next rung, or to the finalists.
        images: search-validation images networks are measured on; None for all.
        repair: what is done after cutting and rounding; None as in the search.
        train: the training, on a rung that trains; its networks are measured on all images.
        learned: whether the quality is predicted from all evaluations of the race.
        by: which of `LOSSES`, as measured by the rung before or by the race, decides who comes
            here; None for the study's.
    """

    name: str
    keep: float = 0.5
    images: int | None = None
    repair: Repair | None = None
    train: TrainSettings | None = None
    learned: bool = False
    by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form of what decides its answers."""
        stated = dataclasses.asdict(self)
        return {**stated, "train": None if self.train is None else self.train.to_dict()}


def read_ladder(section: Section, boxed: bool = False) -> tuple[RungSettings, ...]:
    """Read `ladder`, a list of rungs from cheap to dear.

    Args:
        section: the sweep file's top level.
        boxed: whether the study is of a detector.

    Raises:
        InputError: a key or value is wrong, or two rungs share a name.
    """
    ladder: list[RungSettings] = []
    for part in section.sections("ladder"):
        rung = _read_rung(part, boxed)
        if rung.name in (*_RESERVED, *(r.name for r in ladder)):
            raise part.fail(
                f"rungs must have names of their own, none of {', '.join(_RESERVED)}, but one is "
                f"'{rung.name}'; rename it",
                "name",
            )
        ladder.append(rung)
    return tuple(ladder)


def _read_rung(section: Section, boxed: bool) -> RungSettings:
    name: str = section.get("name", str)
    keep: float = section.number("keep", float, RungSettings.keep, low=0.01, high=1.0)
    kinds = [key for key in ("images", "recover", "learned") if key in section]
    if len(kinds) != 1 or ("repair" in section and kinds != ["images"]):
        raise section.fail(
            f"'{section.name()}' must have one of 'images', 'recover' and 'learned', and 'repair' "
            f"only beside 'images', but has {', '.join(section.keys())}; correct it"
        )
    rung = RungSettings(
        name,
        keep,
        images=_images(section),
        repair=section.choice("repair", REPAIRS) if "repair" in section else None,  # type: ignore[arg-type]
        train=TrainSettings.from_section(section.section("recover"), boxed)
        if "recover" in section
        else None,
        learned=section.get("learned", bool, False),
        by=section.choice("by", LOSSES) if "by" in section else None,
    )
    section.close()
    return rung


def _images(section: Section) -> int | None:
    given = section.get("images", (int, str), "all")
    if given != "all" and (isinstance(given, str) or given < 1):
        raise section.fail(
            f"'{section.name('images')}' must be 'all' or at least 1, but is {given}; correct it",
            "images",
        )
    return None if given == "all" else int(given)


def build_rung(rung: RungSettings, workload: Workload, search: NetworkEstimator) -> Estimator:
    """The estimator of a rung that measures networks; it counts in float32, and to the end.

    Args:
        rung: how; not a learned one, which needs evaluations.
        workload: the network and its data.
        search: the search's estimator, whose compressor is shared where it fits.

    Raises:
        WorkloadError: the split holds fewer images than asked for.
    """
    if rung.train is not None:
        return TrainedEstimator(workload, search.compressor, search.networks, rung.train)
    repair = rung.repair or search.settings.repair
    settings = dataclasses.replace(
        search.settings, images=rung.images, repair=repair, precision="float32", floor=0.0
    )
    same = repair == search.settings.repair
    compressor = search.compressor if same else search.compressor.with_repair(repair)
    return NetworkEstimator(workload, settings, compressor)


def rung_cost(rung: RungSettings, workload: Workload, search: NetworkEstimator) -> int:
    """What one evaluation of a rung costs, in evaluations of the search, rounded up.

    Counted in images that are passed through networks; a step of training passes its images
    forward and backward, which is worth three passes, and once through the original where it
    distils.

    Args:
        rung: not a learned one.
        workload: the network and its data.
        search: the search's estimator.
    """
    whole, settings = len(workload.splits.validation), search.settings
    calibration = settings.calibration_images
    unit = calibration + (whole if settings.images is None else settings.images)
    passed = calibration + (whole if rung.images is None else rung.images)
    if rung.train is not None:
        recovery = rung.train.recovery
        shown = rung.train.shown_images(workload.splits.train)
        passed = calibration + whole + shown * (4 if recovery.distill else 3)
    return max(1, math.ceil(passed / unit))


def places(keeps: Sequence[float], finalists: int) -> list[int]:
    """How many policies each rung measures so that its shares leave the finalists.

    Args:
        keeps: share each rung passes on, from cheap to dear.
        finalists: how many the last one passes on.
    """
    counts: list[int] = []
    wanted = finalists
    for keep in reversed(keeps):
        wanted = math.ceil(wanted / keep - 1e-9)
        counts.append(wanted)
    return counts[::-1]


def best_fronts(values: NDArray[np.float64], reference: Reference, count: int) -> NDArray[np.int64]:
    """Rows of the `count` best policies: whole fronts, the best first, the last one thinned.

    Args:
        values: (n, n_objectives) minimised; rows with inf are never chosen.
        reference: of the hypervolume that a front is thinned by.
        count: how many; fewer when fewer are usable.
    """
    left = np.array(values, dtype=np.float64)
    chosen: list[int] = []
    while len(chosen) < count:
        front = np.flatnonzero(front_mask(left))
        if not len(front):
            break
        room = count - len(chosen)
        if len(front) > room:
            front = front[spread_subset(left[front], reference, room)]
        chosen += front.tolist()
        left[front] = np.inf
    return np.array(sorted(chosen), dtype=np.int64)
