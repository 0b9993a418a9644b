"""The formats a study's networks can be exported in, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.deploy.detector import (
    SAME_OVERLAP,
    DetectorFile,
    DetectorReport,
    export_detector,
    gives_detections,
)
from automl_compress.deploy.onnx import SAFE_BITS, OnnxReport, export_onnx
from automl_compress.deploy.packed import load_packed, save_packed
from automl_compress.deploy.runtime import Runner
from automl_compress.deploy.state import load_state, save_state
from automl_compress.errors import DeployError
from automl_compress.settings import shown, suggestion
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, BoxTask, Task
from automl_compress.workload.box_task import SURE


@dataclass(frozen=True)
class Source:
    """Where a network to export comes from.

    Args:
        policy: what it was built by.
        example_input: (1, channels, height, width), or whatever the network takes.
        original: the network before compression.
        architecture: its name for `build_model`.
        arguments: keyword arguments of the architecture.
        calibration: (n, ...) training inputs that choose ranges of activations.
        images: (n, ...) inputs that a file is compared with the network on.
        task: what the network does.
        classes: names of the classes, in the order of the outputs.
        raw: whether an ONNX file of a detector leaves out its post-processing.
    """

    policy: Policy
    original: nn.Module
    example_input: Tensor
    architecture: str
    arguments: Mapping[str, Any]
    calibration: Tensor
    images: Tensor
    task: Task = CLASSIFICATION
    classes: tuple[str, ...] = ()
    raw: bool = False


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Args:
        size_bytes: bytes on disk.
        remark: what else there is to say of it, in a line; empty when nothing.
    """

    size_bytes: int
    remark: str = ""


@dataclass(frozen=True)
class Format:
    """How networks are written in one format and run from it.

    Args:
        save: writes a network whole or not at all.
        load: reads a file into something that maps inputs to outputs, given the original network;
            a `DetectorFile` maps them to detections.
    """

    save: Callable[[nn.Module, Path, Source], Written]
    load: Callable[[Path, nn.Module], Callable[[Tensor], Tensor]]


def _save_packed(network: nn.Module, path: Path, source: Source) -> Written:
    size = save_packed(
        network,
        path,
        source.policy,
        architecture=source.architecture,
        arguments=source.arguments,
        original=source.original,
    )
    return Written(size)


def _save_state(network: nn.Module, path: Path, source: Source) -> Written:
    size = save_state(
        network,
        path,
        source.policy,
        architecture=source.architecture,
        arguments=source.arguments,
    )
    return Written(size)


def _save_onnx(network: nn.Module, path: Path, source: Source) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs = (source.example_input, source.calibration)
    if isinstance(source.task, BoxTask) and not source.raw:
        found = export_detector(network, source.task, path, *inputs, source.images, source.classes)
        return Written(found.onnx.size_bytes, f"{_integers(found.onnx)}: {_agreement(found)}")
    report = export_onnx(network, path, *inputs, images=source.images)
    agreement = f"top-1 agreement {report.top1_agreement:.2%}, "
    if isinstance(source.task, BoxTask):
        agreement = ""  # positions of largest values mean nothing in raw outputs of boxes
    return Written(
        report.size_bytes,
        f"{_integers(report)}: {agreement}largest difference {report.largest_difference:.3g} of "
        f"outputs up to {report.largest_output:.3g}",
    )


def _integers(report: OnnxReport) -> str:
    bits = sorted(set(report.weight_bits.values()))
    stored = f", {', '.join(map(str, bits))} bits on the INT8 grid" if bits else ""
    wide = max(bits, default=0) > SAFE_BITS
    needed = "; processors without VNNI, and only they, need session.x64quantprecision=1"
    hint = needed if wide else ""
    return (
        f"{len(report.weight_bits)} layers hold integers{stored}{hint}; against PyTorch on "
        f"{report.images:,} test examples"
    )


def _agreement(report: DetectorReport) -> str:
    sure = f"detections of score {SURE:g} or more"
    same = f"{report.agreement:.2%} of {report.detections:,} {sure} are the same (class, and an "
    compared = f"{same}overlap of {SAME_OVERLAP:g})" if report.detections else f"no {sure}"
    off = report.onnx.differences["scores"]
    return f"{compared}; largest difference of scores {off:.3g} of the largest"


def _load_onnx(path: Path, _: nn.Module) -> Callable[[Tensor], Tensor]:
    if gives_detections(path):
        return DetectorFile(path)
    runner = Runner(path)

    def call(inputs: Tensor) -> Tensor:
        return torch.from_numpy(runner(np.ascontiguousarray(inputs.numpy()))[0])

    return call


FORMATS: Final[dict[str, Format]] = {
    "onnx": Format(_save_onnx, _load_onnx),
    "packed": Format(_save_packed, load_packed),
    "torch": Format(_save_state, load_state),
}


def export_format(name: str) -> Format:
    """The format of a name.

    Raises:
        DeployError: there is none.
    """
    if not isinstance(name, str) or name not in FORMATS:
        raise DeployError(
            f"a format must be one of {', '.join(FORMATS)}, but is {shown(name)}"
            f"{suggestion(str(name), FORMATS)}; choose one of them"
        )
    return FORMATS[name]
