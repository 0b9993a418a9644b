"""Writing a network of a study into a file, and reading it back to see that it is the one."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from automl_compress.deploy.detector import DetectorFile
from automl_compress.deploy.formats import Format, Source, export_format
from automl_compress.engine import Restored, restore_study
from automl_compress.errors import DeployError, StudyError
from automl_compress.evaluate import QUALITIES, quality_name
from automl_compress.finish.audience import NOBODY, Audience, check_audience
from automl_compress.finish.folder import recovered_file
from automl_compress.finish.network import network_of
from automl_compress.ledger import StudyResult
from automl_compress.report import Pick, pick_network
from automl_compress.settings import file_path
from automl_compress.space import Policy
from automl_compress.workload import Normalization, Workload
from automl_compress.workload.torch_modes import usual_modes

COMPARED_IMAGES: Final = 1_000
"""Test images on which a file's outputs are compared with the network's, at most."""


@usual_modes()
def export_network(
    folder: str | Path | StudyResult,
    rule: str | Policy,
    format_name: str,
    output: str | Path,
    *,
    recovered: bool = False,
    raw: bool = False,
    audience: Audience = NOBODY,
    workload: Workload | None = None,
) -> None:
    """Build the network a rule picks, write it, read it and say what came of it.

    Args:
        folder: a study's folder, or what the study returned.
        rule: see `report.pick_network`.
        format_name: see `deploy.formats`.
        output: the file; replaced if it exists.
        recovered: whether its trained form is written, which `recover` left in the folder.
        raw: whether an ONNX file of a detector leaves out its post-processing.
        audience: is told what was picked and what was read back.
        workload: given again, where the study was given a loaded one.

    Raises:
        InputError: the folder, the rule, the format or the output is wrong; nothing is written.
    """
    check_audience(audience)
    chosen_format = export_format(format_name)
    result, output = StudyResult(folder), file_path(output, "an exported file", DeployError)
    if raw and (format_name != "onnx" or result.manifest.workload.get("task") != "detection"):
        raise StudyError(
            "'raw' must be given for detectors in the format onnx only, for nothing else has its "
            "post-processing in the file; remove it"
        )
    picked = pick_network(result, rule)
    before = ", before it was recovered" if recovered else ""
    audience.say(f"picked {picked.describe()}: {_said(picked)}{before}")
    trained = recovered_file(result.folder, picked.policy) if recovered else None
    study = restore_study(result.folder, workload)
    network = network_of(study, picked.policy, trained)
    written = chosen_format.save(network, output, _source(study, picked.policy, raw))
    size, promised = written.size_bytes, study.promised_bytes(picked.policy)
    audience.say(
        f"{output}: {size:,} bytes on disk, {promised:,} promised "
        f"for a packed file ({size / promised:.3f} of it)"
    )
    if written.remark:
        audience.say(written.remark)
    audience.say(_input(study.workload))
    audience.say(_read_back(chosen_format, output, study))


def _source(study: Restored, policy: Policy, raw: bool) -> Source:
    """What a format may ask of a network and of the study it is from."""
    workload = study.workload
    return Source(
        policy=policy,
        original=workload.model,
        example_input=study.example_input(),
        architecture=workload.name,
        arguments=workload.arguments,
        calibration=study.calibration_images(),
        images=study.some_test_images(COMPARED_IMAGES),
        task=workload.task,
        classes=workload.classes,
        raw=raw,
    )


def _input(workload: Workload) -> str:
    """What the network is fed with, for no file holds it."""
    images, scaling = workload.splits.test, workload.normalization
    form = f"its input is (n, {', '.join(map(str, images.shape))}) of float32"
    if images.images.dtype != np.uint8:
        return f"{form}, as the data set gives it"
    mean, std = ([float(f"{value:.6g}") for value in v] for v in (scaling.mean, scaling.std))
    plain = scaling == Normalization.unit(len(mean))
    return f"{form}: pixels of 0..255 / 255" + ("" if plain else f", minus {mean}, over {std}")


def _read_back(chosen_format: Format, output: Path, study: Restored) -> str:
    """Read a file, and say how good what it holds is on the test images."""
    workload = study.workload
    loaded = chosen_format.load(output, workload.model)
    answering = isinstance(loaded, DetectorFile)
    quality = (study.test_quality_of_answers if answering else study.test_quality)(loaded)
    images, title = len(workload.splits.test), QUALITIES[workload.task.quality]
    return f"read back, it has {quality:.2%} {title} on the {images:,} test examples"


def _said(picked: Pick) -> str:
    title = QUALITIES[quality_name(picked.evaluation.metrics)]
    quality = f"{picked.evaluation.quality:.2%} {title}"
    if picked.tested:
        return f"{quality} on the test examples, says the study"
    return f"{quality} on the search's examples, never tested"
