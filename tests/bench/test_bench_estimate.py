"""The naive loop is right, and ours agrees with it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from automl_compress.bench.estimate import (
    LOOPS,
    NAIVE,
    Breakdown,
    EstimateBench,
    EstimateTask,
    LoopBench,
    RateRow,
    measure_estimates,
)
from automl_compress.bench.naive import NaiveLoop
from automl_compress.cli import main
from automl_compress.cli.bench_estimate import estimate_page
from automl_compress.compress import Compressor, derive_space
from automl_compress.compress.kinds import BATCH_NORMS
from automl_compress.errors import InputError
from automl_compress.evaluate.network import EstimateSettings
from automl_compress.space import Policy, SpaceRules
from automl_compress.workload import WorkloadConfig, load_workload
from automl_compress.workload.data import DataConfig
from automl_compress.workload.models import MODELS

sys.path.insert(0, str(Path(__file__).parents[1] / "compress"))
from compress_networks import example, network


def task() -> EstimateTask:
    data = DataConfig.from_name(MODELS["digits_cnn"].data)
    workload = load_workload(WorkloadConfig("digits_cnn", data, epochs=2))
    return EstimateTask(workload, EstimateSettings(128, 48), SpaceRules())


@pytest.fixture(scope="module")
def bench() -> LoopBench:
    return LoopBench(task())


@pytest.mark.parametrize("name", ["vgg", "mobile", "resnet8", "signal", "volume"])
def test_the_naive_loop_cuts_what_the_compressor_cuts(name: str) -> None:
    model, x = network(name), example(name, 12)
    compressor = Compressor(model, x[:1], x, repair="none")
    naive = NaiveLoop(compressor, x[:1], x, x, torch.zeros(12, dtype=torch.long))
    groups = naive.understood_groups()
    assert groups
    rng = np.random.default_rng(0)
    space = derive_space(model, x[:1]).space
    drawn = space.decode(space.sample(rng)).of_kind("channels")
    policy = Policy({f"channels:{n}": v for n, v in drawn.items() if n in groups})
    with torch.no_grad():
        pruned = naive.prune(policy)(x)
        torch.testing.assert_close(pruned, compressor.build(policy)(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(model(x), network(name)(x))


@pytest.mark.parametrize("name", ["resnet8", "signal", "volume"])
def test_the_naive_loop_recalibrates_every_batch_norm(name: str) -> None:
    model, x = network(name), example(name, 12)
    compressor = Compressor(model, x[:1], x, repair="none")
    naive = NaiveLoop(compressor, x[:1], 3 * x + 1, x, torch.zeros(12, dtype=torch.long))
    copied = naive.prune(Policy({}))
    naive._recalibrate(copied)
    norms = dict(model.named_modules())
    for place, module in copied.named_modules():
        if isinstance(module, BATCH_NORMS):
            assert not torch.allclose(module.running_var, norms[place].running_var)


def test_option_a_shortcuts_are_not_understood() -> None:
    """Torch-Pruning cuts wrong channels behind a shortcut that pads them."""
    model, x = network("resnet8"), example("resnet8", 4)
    compressor = Compressor(model, x[:1], x, repair="none")
    naive = NaiveLoop(compressor, x[:1], x, x, torch.zeros(4, dtype=torch.long))
    maps = [m for m in compressor.model.modules() if type(m).__name__ == "ChannelMap"]
    whole = {g.name for g in compressor.structure.groups if not g.protected}
    assert maps
    assert set(naive.understood_groups()) < whole


def test_ours_counts_as_the_naive_loop_does(bench: LoopBench) -> None:
    policies = bench.policies(30, 0)
    assert len({policy.key for policy in policies}) == 30
    count = len(bench.naive._labels)
    assert round(bench.largest_difference(policies) * count) <= 1
    bench.naive._labels = bench.naive._labels.flip(0)  # and more would be noticed
    assert round(bench.largest_difference(policies[:3]) * count) > 1
    bench.naive._labels = bench.naive._labels.flip(0)


def test_the_default_ranks_as_plain_networks_do(bench: LoopBench) -> None:
    assert bench.rank_correlation(bench.policies(30, 0)) >= 0.98


def test_time_is_where_it_is_spent(bench: LoopBench) -> None:
    part = bench.breakdown(bench.policies(3, 0))
    assert part.build_ms > 0
    assert 0 < part.forward_share < 1.5
    assert part.over_forward == pytest.approx(1 / part.forward_share)


def test_images_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
    assert main(["bench", "estimate", str(sweep), "--policies", "2"]) == 2
    assert "--policies must be at least 3, but is 2" in capsys.readouterr().err


def test_a_missing_torch_pruning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    x = example("vgg", 2)
    compressor = Compressor(network("vgg"), x[:1], x, repair="none")
    with pytest.raises(InputError, match=r"pip install 'automl-compress\[bench\]'"):
        NaiveLoop(compressor, x[:1], x, x, torch.zeros(2, dtype=torch.long))


def test_the_page_states_ratios_to_naive_rows() -> None:
    rates = (
        RateRow(NAIVE, 1, 1, 1.0, 1.0, 512.0, 1.0, 1.0),
        RateRow(NAIVE, 1, 2, 1.6, 1.5, 512.0, 1.0, 1.0),
        RateRow(NAIVE, 2, 1, 0.8, 0.7, 512.0, 1.0, 1.0),
        RateRow("ours", 2, 1, 8.0, 2.0, 300.0, 9.5, 11.0),
    )
    part = Breakdown(8.0, 0.05, 0.1, 0.07, 0.8, 1.25, 0.7)
    classes = EstimateBench(rates, part, 1 / 512, 0.995, 12, 30, 512, 27, 30, "accuracy")
    page = estimate_page(classes, "tiny")
    assert "| ours | 2 x 1 | 8.00 | 10.00 | 9.50..11.00 | 5.00 | 2.00 | 300 |" in page
    assert "(8.00 ms)" in page
    assert "the pass that statistics are taken in (7%), forward passes are 87%" in page
    assert "at most 1 of 512 images, over 30 policies" in page
    boxes = EstimateBench(rates, part, 0.0123, 0.995, 12, 30, 512, 27, 30, "map50")
    assert "at most 1.23 points of mAP50" in estimate_page(boxes, "tiny")


@pytest.mark.slow
def test_all_loops_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path))
    heard: list[RateRow] = []
    found = measure_estimates(task(), 3, 2, heard.append)
    assert [row.loop for row in heard] == [*LOOPS, *LOOPS, *LOOPS]
    assert [(row.processes, row.threads) for row in heard[::4]] == [(1, 1), (1, 2), (2, 1)]
    naive = {}
    for row in found.rates:
        assert row.per_second > 0
        assert row.first_per_second > 0
        naive.setdefault((row.processes, row.threads), row.per_second)
        ratio = row.per_second / naive[row.processes, row.threads]
        assert row.lowest_ratio <= ratio * (1 + 1e-9)
        assert row.highest_ratio >= ratio * (1 - 1e-9)
