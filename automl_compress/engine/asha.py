"""Trainings as Ray Tune trials, side by side, promoted by its ASHA scheduler."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from automl_compress.engine.cluster import LOCAL, Listening, fitted, ray_running
from automl_compress.engine.dispatcher import reason_of, share_large_tensors
from automl_compress.engine.engine import EngineSettings
from automl_compress.errors import EngineError, InterruptedStudy

PROMOTED: Final = 3
"""One of so many trainings is promoted, after a ninth and after a third of the epochs."""
_UNITS: Final = 10_000
_STOPPED: Final = "stopped; every finished epoch is saved, train the same again to go on"

Report = Callable[[int, float], None]
"""Told by a training after each of its epochs: how many are done, and the quality."""
Train = Callable[[str, Report], None]
"""Runs the training of a name to its end, or reports what it did before and returns."""


def promote_trainings(
    names: Sequence[str],
    train: Train,
    epochs: int,
    listener: Callable[[str, int, float, bool], None],
    gpus: int = 0,
) -> None:
    """Run trainings side by side, and stop early those that lag behind (ASHA, Li et al. 2020).

    Ray's ASHA compares a training with those that came to the same epoch before it: the better
    third goes on, and the first always. So all run at once, each with its share of the machine;
    one after the other, the first would be promoted unseen.

    Args:
        names: of the trainings, each different.
        train: runs one, in a process of its own; what it writes must be safe when it is stopped
            in a report.
        epochs: of each.
        listener: hears name, epochs done, quality, and whether this training was stopped.
        gpus: CUDA devices they share; 0 for none.

    Raises:
        EngineError: a training failed; the others have come to their ends.
        InterruptedStudy: the user stopped them.
    """
    cores = len(os.sched_getaffinity(0))
    share = {"cpu": min(1.0, cores / len(names)), "gpu": device_share(len(names), gpus)}

    def hear(result: dict[str, Any]) -> None:
        stopped = result.get("done", False) and result["epoch"] < epochs
        listener(result["config"]["training"], result["epoch"], result["quality"], stopped)

    here = EngineSettings(threads=max(1, cores // len(names)), address=LOCAL)
    with ray_running(here), tempfile.TemporaryDirectory() as folder:
        share_large_tensors()
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_run_training, train=train), share),
            param_space={"training": tune.grid_search(list(names))},
            tune_config=tune.TuneConfig(
                metric="quality",
                mode="max",
                scheduler=ASHAScheduler(
                    time_attr="epoch",
                    max_t=epochs,
                    grace_period=max(1, epochs // PROMOTED**2),
                    reduction_factor=PROMOTED,
                ),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(storage_path=folder, callbacks=[Listening(hear)], verbose=0),
        )
        try:
            results = fitted(tuner)
        except KeyboardInterrupt as reason:
            raise InterruptedStudy(_STOPPED) from reason
    if results.errors:
        error = results.errors[0]
        raise EngineError(reason_of(getattr(error, "cause", error)))
    if any(not (result.metrics or {}).get("done") for result in results):
        raise InterruptedStudy(_STOPPED)


def device_share(trainings: int, devices: int) -> float:
    """What each of some trainings gets of a CUDA device, so that all run at once.

    Ray puts no training on two devices, so that 2/3 for each of three would let two run, one a
    device. It counts in ten-thousandths.
    """
    return _UNITS // -(-trainings // devices) / _UNITS if devices else 0.0


def _run_training(config: dict[str, Any], train: Train) -> None:
    """A Tune trial: one training."""
    train(
        config["training"],
        lambda epoch, quality: tune.report({"epoch": epoch, "quality": quality}),
    )
