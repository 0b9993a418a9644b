"""How many networks are estimated in a second, by the naive loop and by ours, and how truly.

All loops answer the same random policies with as many images, in turns of a few policies, so that
a machine that becomes slower slows all of them. The naive loop's answers are compared with ours on
the same images, which count alike; the defaults draw theirs by margins. Each policy is new to its
loop, but ours have answered others before: what they keep of single layers is filled, as it soon is
in a search. What the very first policies take is timed too.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from automl_compress.bench.naive import NaiveLoop
from automl_compress.compress import space_of_structure
from automl_compress.compress.compressor import STATISTICS_IMAGES
from automl_compress.compress.memory_order import in_order, order_for
from automl_compress.evaluate.fast_form import fast_precision
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.evaluate.ranking import spearman
from automl_compress.space import Policy, SpaceRules
from automl_compress.workload import Workload

NAIVE: Final = "naive"
SAME_WORK: Final = "recalibrate, float32"
"""What the naive loop does, done by ours."""
DEFAULT: Final = f"layerwise, {fast_precision()}"
"""The default, but that collapsed networks are measured on all images too."""
EARLY: Final = f"{DEFAULT}, floor"
"""The default."""
_FIRST: Final = 5
"""Very first policies that are timed."""
_TURN: Final = 2
"""Policies that a loop answers before it is another's turn."""
_COMPARED: Final = 30
"""Answers of at least so many policies are compared."""
_PATIENCE: Final = 3600.0
"""Seconds after which a process is given up."""
LOOPS: Final = (NAIVE, SAME_WORK, DEFAULT, EARLY)


@dataclass(frozen=True)
class RateRow:
    """How fast one loop is.

    Args:
        loop: one of `LOOPS`.
        processes: side by side.
        threads: of each.
        per_second: networks estimated in a second, by all processes.
        first_per_second: the same of the very first policies.
        images: mean number of images a network was measured on.
        lowest_ratio: to the naive loop's rate in the same processes, of all turns.
        highest_ratio: likewise.
    """

    loop: str
    processes: int
    threads: int
    per_second: float
    first_per_second: float
    images: float
    lowest_ratio: float
    highest_ratio: float


@dataclass(frozen=True)
class Breakdown:
    """Where the time of an estimate goes, on one thread, when its layers are known.

    Args:
        build_ms: milliseconds of cutting and rounding the network.
        build_share: the same, as a share of the whole.
        statistics_share: of new BatchNorm statistics.
        statistics_forward_share: of the forward pass these are taken in, without taking them.
        forward_share: of the bare forward passes of the compressed network, judging its answers
            included.
        over_forward: the whole over the bare forward passes.
        over_plain_forward: the whole over forward passes as PyTorch makes them, in float32.
    """

    build_ms: float
    build_share: float
    statistics_share: float
    statistics_forward_share: float
    forward_share: float
    over_forward: float
    over_plain_forward: float


@dataclass(frozen=True)
class EstimateBench:
    """What was measured.

    Args:
        rates: of the loops, alone and on all processors.
        breakdown: of the default.
        largest_difference: of the quality, as a share, of ours in float32 and the naive loop with
            the same steps of rounding.
        rank_correlation: Spearman's, of the default with the same networks run plainly in float32.
        policies: rates and the breakdown are of so many.
        compared: answers of so many are compared.
        images: networks are judged by.
        groups: channel groups that policies cut: those that Torch-Pruning follows rightly.
        all_groups: that could be cut.
        judged_by: the quality, see `QUALITIES`.
    """

    rates: tuple[RateRow, ...]
    breakdown: Breakdown
    largest_difference: float
    rank_correlation: float
    policies: int
    compared: int
    images: int
    groups: int
    all_groups: int
    judged_by: str


@dataclass(frozen=True)
class EstimateTask:
    """What is estimated.

    Args:
        workload: the network and its data.
        settings: images and criteria; loops have precisions, repairs and floors of their own.
        rules: of the space that policies are drawn from.
    """

    workload: Workload
    settings: EstimateSettings
    rules: SpaceRules


def measure_estimates(
    task: EstimateTask, policies: int, processes: int, listener: Callable[[RateRow], None]
) -> EstimateBench:
    """Time and compare the loops on one network.

    Args:
        task: network, data, images and space.
        policies: how many each loop answers in each process.
        processes: side by side at most, and threads at most.
        listener: hears every rate.

    Raises:
        InputError: network, data or space are wrong, or Torch-Pruning is not there.
    """
    bench = LoopBench(task)
    rates: list[RateRow] = []
    for count, threads in dict.fromkeys(((1, 1), (1, processes), (processes, 1))):
        rows = _rates(task, count, threads, policies)
        rates += rows
        for row in rows:
            listener(row)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compared = bench.policies(max(_COMPARED, policies), 7)
        for policy in [*bench.policies(3 * policies, 1), *compared]:
            bench.answer(DEFAULT, policy)
        breakdown = bench.breakdown(compared[:policies])
        structure = bench.estimator(SAME_WORK).compressor.structure
        return EstimateBench(
            tuple(rates),
            breakdown,
            bench.largest_difference(compared),
            bench.rank_correlation(compared),
            policies,
            len(compared),
            len(bench.estimator(SAME_WORK).images_and_labels()[1]),
            len(bench.groups),
            sum(not group.protected for group in structure.groups),
            task.workload.task.quality,
        )
    finally:
        torch.set_num_threads(threads)


class LoopBench:
    """One process's network, data and loops."""

    def __init__(self, task: EstimateTask) -> None:
        self.workload = task.workload
        self._settings = task.settings
        self._rules = task.rules
        self._estimators: dict[str, NetworkEstimator] = {}
        same = self.estimator(SAME_WORK)
        drawn = self.workload.splits.train.draw(
            self._settings.calibration_images, self._settings.seed
        )
        calibration = drawn.tensor(self.workload.normalization)
        few = calibration[:STATISTICS_IMAGES]
        model, example = self.workload.model, self.workload.example_input()
        self._few = in_order(few, order_for(model, example))
        self.naive = NaiveLoop(
            same.compressor,
            example,
            calibration,
            *same.images_and_labels(),
            self.workload.task,
        )
        self.groups = self.naive.understood_groups()

    def estimator(self, loop: str) -> NetworkEstimator:
        """Our estimator of a loop."""
        if loop not in self._estimators:
            settings = _settings(self._settings, loop)
            self._estimators[loop] = NetworkEstimator(self.workload, settings)
        return self._estimators[loop]

    def answer(self, loop: str, policy: Policy) -> int:
        """Estimate a policy; the images it was measured on."""
        if loop != NAIVE:
            return self.estimator(loop).estimate(policy).images
        self.naive.quality(policy)
        return len(self.estimator(SAME_WORK).images_and_labels()[1])

    def policies(self, count: int, seed: int) -> list[Policy]:
        """Random ones that leave groups whole which Torch-Pruning follows wrongly."""
        compressor = self.estimator(SAME_WORK).compressor
        genes = space_of_structure(compressor.model, compressor.structure, self._rules).space
        rng = np.random.default_rng(seed)
        drawn = [genes.decode(genes.sample(rng)) for _ in range(count)]
        return [
            Policy(
                {f"channels:{n}": v for n, v in d.of_kind("channels").items() if n in self.groups}
                | {f"weight_bits:{n}": v for n, v in d.of_kind("weight_bits").items()}
            )
            for d in drawn
        ]

    def breakdown(self, policies: Sequence[Policy]) -> Breakdown:
        """Where the default's time goes."""
        estimator = self.estimator(DEFAULT)
        sums = np.zeros(6)
        with torch.inference_mode():
            for policy in policies:
                times = [
                    _seconds(estimator.estimate, policy),
                    _seconds(estimator.compressor.build, policy),
                    _seconds(estimator.compressor.build, policy, False),
                ]
                network = estimator.compressor.build(policy)
                times.append(_seconds(estimator.fast_quality, network, policy))
                times.append(_seconds(estimator.quality, network))
                times.append(_seconds(self._statistics_pass, network))
                sums += times
        whole, repaired, built, forward, plain, statistics = sums
        return Breakdown(
            1e3 * built / len(policies),
            built / whole,
            (repaired - built) / whole,
            statistics / whole,
            forward / whole,
            whole / forward,
            whole / plain,
        )

    def _statistics_pass(self, network: nn.Module) -> None:
        """The forward pass that new BatchNorm statistics are taken in."""
        low = self.estimator(DEFAULT).settings.precision == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            network(self._few)

    def largest_difference(self, policies: Sequence[Policy]) -> float:
        """How far ours in float32 and the naive loop are apart, as a share."""
        estimator = self.estimator(SAME_WORK)
        worst = 0.0
        for policy in policies:
            built = estimator.compressor.build(policy)
            scales = {
                n: built.get_buffer(f"{n}.weight_scale") for n in policy.of_kind("weight_bits")
            }
            ours = estimator.estimate(policy).quality
            worst = max(worst, abs(ours - self.naive.quality(policy, scales)))
        return worst

    def rank_correlation(self, policies: Sequence[Policy]) -> float:
        """Spearman's, of the default with the same networks run plainly in float32."""
        estimator = self.estimator(DEFAULT)
        fast = [estimator.estimate(policy).quality for policy in policies]
        exact = replace(estimator.settings, precision="float32")
        plain = NetworkEstimator(self.workload, exact)
        with torch.inference_mode():
            slow = [plain.quality(plain.compressor.build(policy)) for policy in policies]
        return spearman(np.array(fast), np.array(slow))


def _settings(settings: EstimateSettings, loop: str) -> EstimateSettings:
    if loop == SAME_WORK:
        return replace(
            settings, repair="recalibrate", precision="float32", floor=0.0, draw="uniform"
        )
    default = EstimateSettings()
    floor = default.floor if loop == EARLY else 0.0
    return replace(settings, repair=default.repair, precision=default.precision, floor=floor)


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def _rates(task: EstimateTask, processes: int, threads: int, policies: int) -> tuple[RateRow, ...]:
    """Time all loops in processes that begin every turn together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    queue = context.Queue()
    workers = [
        context.Process(target=_work, args=(task, threads, (policies, place), barrier, queue))
        for place in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=_PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    slowest = {loop: np.array([times[loop].seconds for times in found]).max(0) for loop in LOOPS}
    ratios = {loop: slowest[NAIVE] / slowest[loop] for loop in LOOPS}
    return tuple(
        RateRow(
            loop,
            processes,
            threads,
            processes * policies / float(slowest[loop].sum()),
            processes * _FIRST / max(times[loop].first for times in found),
            float(np.mean([times[loop].images for times in found])),
            float(ratios[loop].min()),
            float(ratios[loop].max()),
        )
        for loop in LOOPS
    )


@dataclass
class _Times:
    """One loop in one process: seconds of the first policies and of each turn, mean images."""

    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    images: float = 0.0


def _work(
    task: EstimateTask, threads: int, share: tuple[int, int], barrier: Any, queue: Any
) -> None:
    """Let every loop answer first policies, others to warm up, and last the timed ones in turns."""
    torch.set_num_threads(threads)
    bench = LoopBench(task)
    count, place = share
    first = bench.policies(_FIRST, 1 + place)
    warm = bench.policies(3 * count, 501 + place)
    timed = bench.policies(count, 1001 + place)
    times = {loop: _Times() for loop in LOOPS}

    def answer(loop: str, policies: Sequence[Policy]) -> float:
        """Seconds of answers that begin in all processes at once."""
        barrier.wait()
        start = time.perf_counter()
        for policy in policies:
            times[loop].images += bench.answer(loop, policy) / count
        return time.perf_counter() - start

    for loop in LOOPS:
        if loop != NAIVE:
            bench.estimator(loop)
        times[loop].first = answer(loop, first)
    for loop in LOOPS:
        for policy in warm if loop != NAIVE else ():
            bench.answer(loop, policy)
        times[loop].images = 0.0
    for turn in range(0, count, _TURN):
        for loop in LOOPS:
            times[loop].seconds.append(answer(loop, timed[turn : turn + _TURN]))
    queue.put(times)
