"""Latencies of networks, measured in a process that does nothing else.

`python -m automl_compress.deploy.measuring FOLDER` measures the files of a folder and prints what
it found as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.deploy.latency import Latency, latencies
from automl_compress.deploy.onnx import onnx_content
from automl_compress.errors import EngineError
from automl_compress.settings import one_line

RUNTIMES: Final = ("onnxruntime",)
FEWEST_RUNS: Final = 6
"""Fewer runs give no 95 % interval of their median."""
_REQUEST: Final = "request.json"
_EXAMPLE: Final = "example.npy"


@dataclass(frozen=True)
class MeasureSettings:
    """How latencies are measured, in ONNX Runtime on the processor.

    Args:
        threads: threads of one run.
        batch: inputs per run.
        int8: whether layers with low-bit weights run on integers.
        runs: runs of each network that are counted.
    """

    threads: int = 1
    batch: int = 1
    int8: bool = True
    runs: int = 100


def measure_alone(
    networks: Mapping[str, nn.Module], example_input: Tensor, settings: MeasureSettings
) -> dict[str, Latency]:
    """Measure networks in turn in a process of their own, while this one waits.

    Args:
        networks: by name.
        example_input: (1, ...) what each of them takes.
        settings: how.

    Raises:
        InputError: a network cannot be exported, or ONNX Runtime is not installed.
        EngineError: the process fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {}
        for place, (label, network) in enumerate(networks.items()):
            files[label] = f"{place}.onnx"
            # Ranges do not change how long a kernel takes: one input suffices for them.
            content = onnx_content(network, example_input[:1], example_input[:1], settings.int8)
            (folder / files[label]).write_bytes(content)
        np.save(folder / _EXAMPLE, example_input[:1].numpy())
        request = {"files": files, "settings": asdict(settings)}
        (folder / _REQUEST).write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "automl_compress.deploy.measuring", name]
        try:
            done = subprocess.run(  # noqa: S603 - this very module
                command, capture_output=True, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as reason:
            said = getattr(reason, "stderr", "") or one_line(reason)
            last = said.strip().splitlines()[-1]
            raise EngineError(
                f"latencies must be measured in a process of their own, but it failed: {last}"
            ) from reason
        return {label: Latency(**values) for label, values in found.items()}


def _measure(folder: Path) -> dict[str, Latency]:
    request = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    settings = MeasureSettings(**request["settings"])
    example = torch.from_numpy(np.load(folder / _EXAMPLE))
    files = {label: folder / file for label, file in request["files"].items()}
    return latencies(files, example, settings.batch, settings.threads, settings.runs)


if __name__ == "__main__":
    measured = _measure(Path(sys.argv[1]))
    print(json.dumps({label: asdict(latency) for label, latency in measured.items()}))
