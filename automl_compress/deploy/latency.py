"""How long networks take on this machine.

A latency means nothing without its runtime, threads and batch, so `Latency` carries them. Networks
that are to be compared are measured in turn, run by run, because a processor's speed drifts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.compress.modules import own_copy
from automl_compress.deploy.onnx import onnx_content
from automl_compress.deploy.runtime import Runner, library_version
from automl_compress.errors import InputError
from automl_compress.settings import shown, significant
from automl_compress.user_code import user_code
from automl_compress.workload.torch_modes import usual_modes

Provider = Literal["onnxruntime", "torch"]
PROVIDERS: Final[tuple[Provider, ...]] = ("onnxruntime", "torch")
CONFIDENCE: Final = 0.95
"""How often an interval of a median shall hold it, at least."""
WARMUP: Final = 5
"""Runs that are not counted: the first ones allocate."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run, and how they were measured; smaller is better.

    The interval is of the one session in which the runs were made, for they follow each other and
    share the processor's speed of these seconds. Another session may give a median outside of it.

    Args:
        median_ms: median over the runs.
        lower_ms: lower end of the median's interval, see `median_interval`.
        upper_ms: its upper end.
        batch: inputs per run.
        threads: threads of the runtime.
        runs: runs counted.
        runtime: library and version.
        confidence: how often such an interval holds the median, in [0, 1].
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    batch: int
    threads: int
    runs: int
    runtime: str
    confidence: float

    def __str__(self) -> str:
        """The latency in one line that says how it was measured."""
        return (
            f"{significant(self.median_ms)} ms ({self.confidence:.1%} interval "
            f"{significant(self.lower_ms)}-{significant(self.upper_ms)}) for batch {self.batch}, "
            f"threads {self.threads}, {self.runtime}, {self.runs} runs"
        )


def latency(
    model: nn.Module | Path | str,
    example_input: Tensor,
    batch: int = 1,
    threads: int = 1,
    runs: int = 100,
    provider: Provider = "onnxruntime",
) -> Latency:
    """Measure one network.

    Args:
        model: a network, or the path of an ONNX file. In ONNX Runtime, low-bit layers of a
            network run on integers.
        example_input: (1, channels, height, width), or whatever the network takes.
        batch: inputs per run.
        threads: threads of the runtime.
        runs: runs counted.
        provider: a name in `PROVIDERS`.

    Raises:
        InputError: a setting is wrong, or the network cannot be exported or loaded.
    """
    return latencies({"": model}, example_input, batch, threads, runs, provider)[""]


@usual_modes()
def latencies(
    models: Mapping[str, nn.Module | Path | str],
    example_input: Tensor,
    batch: int = 1,
    threads: int = 1,
    runs: int = 100,
    provider: Provider = "onnxruntime",
) -> dict[str, Latency]:
    """Measure networks in turn, run by run, so that they can be compared.

    Args:
        models: networks or paths of ONNX files, by name.
        example_input: (1, ...) what each of them takes.
        batch: inputs per run.
        threads: threads of the runtime.
        runs: runs of each network that are counted.
        provider: a name in `PROVIDERS`.

    Raises:
        InputError: a setting is wrong, or a network cannot be exported or loaded.
    """
    _check(models, batch, threads, runs, provider)
    if not isinstance(example_input, Tensor):
        raise InputError(
            f"an example input must be one tensor, but is {shown(example_input)}; make it one"
        )
    inputs = example_input[:1].cpu().expand(batch, *example_input.shape[1:]).contiguous()
    if provider == "torch":
        runtime = f"torch {torch.__version__}"
        calls = {name: _torch_call(model, inputs) for name, model in models.items()}
    else:
        runtime = f"onnxruntime {library_version()}"
        calls = {name: _onnx_call(model, inputs, threads) for name, model in models.items()}
    what = f"the network on inputs of shape {tuple(inputs.shape[1:])}"
    with _torch_threads(threads), user_code(what, InputError, "check the input's shape"):
        seconds = interleaved(calls, runs)
    return {name: _latency(taken, batch, threads, runtime) for name, taken in seconds.items()}


def interleaved(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of every run of every call, which take turns.

    Args:
        calls: what is timed, by name.
        runs: runs of each that are counted, after `WARMUP` more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(WARMUP + runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: taken[WARMUP:] for name, taken in seconds.items()}


def _check(
    models: Mapping[str, nn.Module | Path | str],
    batch: int,
    threads: int,
    runs: int,
    provider: str,
) -> None:
    for name, value in (("batch", batch), ("threads", threads), ("runs", runs)):
        if not isinstance(value, int) or value < 1:
            raise InputError(
                f"{name} must be at least 1, but is {shown(value)}; give a whole number from 1"
            )
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise InputError(
            f"provider must be one of {', '.join(PROVIDERS)}, but is {shown(provider)}; correct it"
        )
    for model in models.values():
        if not isinstance(model, nn.Module | Path | str):
            raise InputError(
                f"latencies are of networks and of ONNX files, but one is of {shown(model)}; give "
                "the network itself or a path"
            )
    files = [model for model in models.values() if not isinstance(model, nn.Module)]
    if provider == "torch" and files:
        raise InputError(
            f"the provider torch measures networks, but '{files[0]}' is a file; "
            "use the provider onnxruntime"
        )


def _torch_call(model: Any, inputs: Tensor) -> Callable[[], object]:
    network = own_copy(model).eval()

    def call() -> object:
        with torch.inference_mode():
            return network(inputs)

    return call


def _onnx_call(model: nn.Module | Path | str, inputs: Tensor, threads: int) -> Callable[[], object]:
    source: bytes | Path
    if isinstance(model, nn.Module):
        # Ranges do not change how long a kernel takes: one input suffices for them.
        source = onnx_content(model, inputs[:1], calibration=inputs[:1])
    else:
        source = Path(model)
        if not source.is_file():
            raise InputError(f"an ONNX file must exist, but '{source}' does not; correct the path")
    runner, array = Runner(source, threads), inputs.numpy()
    return lambda: runner(array)


def _latency(seconds: list[float], batch: int, threads: int, runtime: str) -> Latency:
    lower, upper, confidence = median_interval(seconds)
    median = float(np.median(seconds)) * 1000
    runs = len(seconds)
    return Latency(median, lower * 1000, upper * 1000, batch, threads, runs, runtime, confidence)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Two of the values that hold the median between them, whatever the distribution.

    Of n independent values, the (k+1)-th smallest and the (k+1)-th largest do so unless at most k
    fall on one side of it: 1 - 2 P(Binomial(n, 1/2) <= k) (Conover 1999, section 3.2). Runs close
    to each other are not quite independent, so the interval is rather too narrow, and it says
    nothing of what other runs, at another time, would give.

    Args:
        values: at least one.

    Returns:
        Lower and upper end, and how often such an interval holds the median: at least
        `CONFIDENCE` where there are enough values, the most there can be where there are not.
    """
    ordered, count = sorted(values), len(values)
    outside, cut = 2.0 * 0.5**count, 0
    while (more := outside + 2.0 * math.comb(count, cut + 1) * 0.5**count) <= 1.0 - CONFIDENCE:
        outside, cut = more, cut + 1
    return ordered[cut], ordered[count - 1 - cut], max(0.0, 1.0 - outside)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
