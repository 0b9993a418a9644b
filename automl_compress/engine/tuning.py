"""The batch and the threads that estimates are fastest with, found once per machine and kept.

Which they are depends on caches and memory, hardly on the policy, so networks of half the channels
stand for all. Evaluators side by side share memory, so they are timed side by side.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.engine.config import BATCH, THREADS, StudyConfig
from automl_compress.engine.restore import load_estimators, torch_threads
from automl_compress.evaluate.fast_form import FastForm
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.space import Policy
from automl_compress.workload.cache import cache_folder, store

_logger = logging.getLogger(__name__)

BATCHES: Final = (16, 32, 64, 128, 256)
IMAGES: Final = 256
"""Images of one timing."""
_REPEATS: Final = 3
_CLEAR: Final = 1.03
"""A choice must be so much faster than the default: less is noise."""

Rate = Callable[[int, int], float]
"""Images a second of all evaluators that fit on the machine, by batch and threads of each."""


@dataclass(frozen=True)
class Tuning:
    """What was found.

    Args:
        batch: images measured at a time.
        threads: of each evaluator.
    """

    batch: int
    threads: int


def tuned(config: StudyConfig) -> StudyConfig:
    """The study with numbers wherever it says `auto` of a batch or of threads.

    Raises:
        InputError: the network or its data cannot be loaded.
    """
    if not config.automatic:
        return config
    stated = Tuning(config.estimate.batch, config.engine.threads)
    _, search, _ = load_estimators(config)
    file = cache_folder() / f"tuning-{_digest(config, search)}.json"
    found = _kept(file)
    if found is None:
        found = fastest(stated, config.automatic, _Timer(search).rate, _cores())
        store(file.name, json.dumps(asdict(found)).encode())
    numbers = {BATCH: found.batch, THREADS: found.threads}
    plain = dict(config.plain)
    for key in config.automatic:
        section, _, name = key.partition(".")
        plain[section] = {**plain[section], name: numbers[key]}
    return replace(
        config,
        estimate=replace(config.estimate, batch=found.batch),
        engine=replace(config.engine, threads=found.threads),
        automatic=frozenset(),
        plain=plain,
    )


def _kept(file: Path) -> Tuning | None:
    """What was found before; None when nothing was, or when its file is damaged."""
    if not file.is_file():
        return None
    try:
        return Tuning(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as reason:
        _logger.warning("a cached tuning is damaged and made again: %s", reason)
        return None


def fastest(stated: Tuning, automatic: Iterable[str], rate: Rate, cores: int) -> Tuning:
    """The fastest choice: of threads first, then of the batch.

    Args:
        stated: where to start; what is not automatic stays.
        automatic: `BATCH`, `THREADS` or both.
        rate: times a choice.
        cores: of the machine.
    """
    batch, threads = stated.batch, stated.threads
    if THREADS in automatic:
        halves = [n for n in (1, 2, 4, 8, 16) if n <= cores]
        threads = _best(threads, halves, lambda n: rate(batch, n))
    if BATCH in automatic:
        batch = _best(batch, BATCHES, lambda n: rate(n, threads))
    return Tuning(batch, threads)


def _best(start: int, choices: Iterable[int], rate: Callable[[int], float]) -> int:
    rates = {choice: rate(choice) for choice in {start, *choices}}
    best = max(rates, key=rates.__getitem__)
    return best if rates[best] > _CLEAR * rates[start] else start


class _Timer:
    """Times evaluators side by side on a network of half the channels.

    Args:
        search: whose network, images and precision are used.
    """

    def __init__(self, search: NetworkEstimator) -> None:
        compressor = search.compressor
        groups = [g for g in compressor.structure.groups if not g.protected]
        self._policy = Policy({f"channels:{g.name}": max(1, g.channels // 2) for g in groups})
        images = search.images_and_labels()[0]
        self._images = images.repeat(-(-IMAGES // len(images)), *[1] * (images.dim() - 1))[:IMAGES]
        self._form = FastForm(
            compressor.model,
            self._images[:1],
            search.settings.precision,
            compressor.structure,
            keeps=False,  # nothing is shared by the evaluators
        )
        with torch.inference_mode():
            self._network: nn.Module = compressor.with_repair("none").build(self._policy)

    def rate(self, batch: int, threads: int) -> float:
        """Images a second of as many evaluators as there are cores for."""
        evaluators = max(1, _cores() // threads)
        batches = torch.split(self._images, batch)
        with torch_threads(threads), ThreadPoolExecutor(evaluators) as pool:
            list(pool.map(self._pass, [batches] * evaluators))  # the first one is slow
            start = time.perf_counter()
            list(pool.map(self._pass, [batches] * (evaluators * _REPEATS)))
            seconds = time.perf_counter() - start
        return evaluators * _REPEATS * IMAGES / seconds

    def _pass(self, batches: tuple[Tensor, ...]) -> None:
        with torch.inference_mode():
            for _ in self._form.outputs(self._network, self._policy, batches):
                pass


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _digest(config: StudyConfig, search: NetworkEstimator) -> str:
    """What a tuning holds for: machine, torch, network, precision and what was given."""
    fixed: dict[str, Any] = {}
    if BATCH not in config.automatic:
        fixed[BATCH] = config.estimate.batch
    if THREADS not in config.automatic:
        fixed[THREADS] = config.engine.threads
    network = [(name, list(p.shape)) for name, p in search.compressor.model.named_parameters()]
    shape = list(search.images_and_labels()[0].shape[1:])
    machine = (platform.node(), platform.machine(), _cores(), torch.__version__)
    parts = (machine, network, shape, search.settings.precision, fixed)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
