from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from automl_compress.bench.ablation import PARTS
from automl_compress.cli import main
from automl_compress.engine import surrogate_quality
from automl_compress.engine.cost_regression import CostRegression
from automl_compress.engine.replay import replay, table_problem
from automl_compress.engine.simulations import of_table
from automl_compress.engine.surrogate import LEAST, Surrogate
from automl_compress.engine.surrogate_quality import PROCESS, TREES
from automl_compress.errors import StudyError
from automl_compress.evaluate.ranking import kendall
from automl_compress.evaluate.recorded import RecordedEstimator, Simulation
from automl_compress.evaluate.table import read_table
from automl_compress.space import Gene, Policy, SearchSpace
from automl_compress.testing import ToyNetwork

NETWORK = ToyNetwork(layers=3, channels=(2, 4, 6, 8), weight_bits=(2, 4, 8))
SPACE = NETWORK.space
NOISE = 0.01


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    """The toy's space, measured once."""
    rng = np.random.default_rng(0)
    policies = [SPACE.decode(np.array(p)) for p in itertools.product(*map(range, SPACE.sizes))]
    rows = [
        {**policy, "accuracy": NETWORK.accuracy(policy) + rng.normal(scale=NOISE),
         **{name: NETWORK.costs(policy)[name] for name in ("size_bytes", "macs")}}
        for policy in policies
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _simulation(frame: pd.DataFrame, path: Path, genes: tuple[str, ...] = ()) -> Simulation:
    frame.to_csv(path, index=False)
    return of_table(read_table(path, genes=genes))


@pytest.fixture(scope="module")
def part(whole: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Surrogate]:
    """A seventh of it, the least compressed policy not among it."""
    path = tmp_path_factory.mktemp("tables") / "part.csv"
    found = _simulation(whole.iloc[:-1].sample(frac=1 / 7, random_state=0), path)
    assert isinstance(found, Surrogate)
    return path, found


def test_what_a_table_lacks_is_predicted(
    whole: pd.DataFrame, part: tuple[Path, Surrogate], tmp_path: Path
) -> None:
    found = part[1]
    assert isinstance(_simulation(whole, tmp_path / "whole.csv"), RecordedEstimator)
    policies = [Policy(dict(zip(SPACE.to_dict()["genes"], p, strict=True)))
                for p in whole[list(SPACE.to_dict()["genes"])].itertuples(index=False)]  # fmt: skip
    answers = [found.estimate(policy) for policy in policies]
    assert np.mean([answer.ok for answer in answers]) > 0.95
    answered = [answer for answer in answers if answer.ok]
    truth = [NETWORK.accuracy(answer.policy) for answer in answered]
    assert kendall(np.array([a.quality for a in answered]), np.array(truth)) > 0.9
    costs = np.array([a.metrics["macs"] / NETWORK.costs(a.policy)["macs"] for a in answered])
    assert costs == pytest.approx(np.ones(len(costs)), abs=1e-3)
    assert all(found.costs(a.policy)["macs"] == a.metrics["macs"] for a in answered)
    count = len(pd.read_csv(part[0]))
    assert found.quality.evaluations == count < len(whole) / 6
    assert found.quality.regression == PROCESS
    assert found.quality.cost_error["macs"] < 1e-3
    assert found.baseline["macs"] == pytest.approx(NETWORK.baseline["macs"], rel=1e-3)
    assert found.baseline["error"] == pytest.approx(NETWORK.baseline["error"], abs=0.03)
    for text in (
        "R2",
        f"{count} of {len(whole):,} policies",
        "not recorded, but predicted",
    ):
        assert text in found.note
    assert "that failed" not in found.note


def test_recorded_policies_are_answered_without_their_noise(part: tuple[Path, Surrogate]) -> None:
    frame = pd.read_csv(part[0])
    apart = []
    for row in frame.to_dict("records"):
        policy = Policy({name: int(row[name]) for name in SPACE.to_dict()["genes"]})
        if (told := part[1].estimate(policy)).ok:
            truth = NETWORK.accuracy(policy)
            apart.append((told.quality - truth, row["accuracy"] - truth))
    predicted, recorded = np.sqrt((np.array(apart) ** 2).mean(axis=0))
    assert recorded == pytest.approx(NOISE, rel=0.2)
    assert predicted < 0.8 * recorded


def test_strategies_rank_on_a_part_as_on_the_whole(
    whole: pd.DataFrame, part: tuple[Path, Surrogate], tmp_path: Path
) -> None:
    names = ["random", "uniform", "nsga2", "knapsack"]
    ends = []
    for table in (_simulation(whole, tmp_path / "whole.csv"), part[1]):
        problem = table_problem(table, ("error", "macs"))
        done = replay(table, problem, names, [0, 1, 2], 40, lambda _: None)
        ends.append([np.mean([c.hypervolume[-1] for c in done if c.strategy == n]) for n in names])
    assert kendall(*map(np.array, ends)) > 0.6


def test_the_identity_is_what_is_recorded_and_not_its_order(
    part: tuple[Path, Surrogate], tmp_path: Path
) -> None:
    frame = pd.read_csv(part[0])
    turned = _simulation(frame.iloc[::-1], tmp_path / "turned.csv")
    assert turned.identity == part[1].identity
    assert turned.estimate(SPACE.smallest) == part[1].estimate(SPACE.smallest)
    frame.loc[0, "accuracy"] -= 0.001
    assert _simulation(frame, tmp_path / "other.csv").identity != turned.identity


def test_the_regression_is_chosen_once(
    part: tuple[Path, Surrogate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until what is recorded, or how it is judged, changes."""
    fits: list[int] = []
    fit = surrogate_quality.boosted_trees
    monkeypatch.setattr(
        surrogate_quality,
        "boosted_trees",
        lambda known: fits.append(len(known.errors)) or fit(known),
    )
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path / "cache"))
    frame = pd.read_csv(part[0]).head(LEAST)
    first = _simulation(frame, tmp_path / "first.csv")
    assert len(fits) == surrogate_quality.FOLDS
    again = _simulation(frame, tmp_path / "again.csv")
    assert len(fits) == surrogate_quality.FOLDS
    assert (again.note, again.identity) == (first.note, first.identity)
    for policy in map(SPACE.decode, (SPACE.sizes - 1, SPACE.sizes // 2)):
        assert again.estimate(policy) == first.estimate(policy)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text("broken")
    assert _simulation(frame, tmp_path / "broken.csv").note == first.note
    assert len(fits) == 2 * surrogate_quality.FOLDS
    frame.loc[0, "accuracy"] -= 0.001
    _simulation(frame, tmp_path / "other.csv")
    assert len(fits) == 3 * surrogate_quality.FOLDS


def test_the_hypervolume_ends_at_the_worst_that_is_recorded(
    whole: pd.DataFrame, part: tuple[Path, Surrogate], tmp_path: Path
) -> None:
    frame = pd.read_csv(part[0])
    found = part[1]
    worst = 1 - frame["accuracy"].min()
    assert found.counted_error == pytest.approx(worst)
    reference, share = found.scale(("error", "macs"), ())
    assert reference.point == pytest.approx([worst, frame["macs"].max()])
    assert share == 1
    with pytest.raises(StudyError, match="none of the table meets macs <= 1"):
        found.scale(("error", "macs"), table_problem(found, (), ["macs <= 1"]).constraints)
    few = frame.head(LEAST)
    level = _simulation(few.assign(params=7), tmp_path / "level.csv")
    assert level.baseline["params"] == pytest.approx(7)
    with pytest.raises(StudyError, match="of the table none is in error, params"):
        level.scale(("error", "params"), ())
    level = _simulation(few.assign(accuracy=0.5), tmp_path / "accuracy.csv")
    assert level.estimate(SPACE.decode(SPACE.sizes // 2)).quality == pytest.approx(0.5)
    measured = pd.concat([few, whole.iloc[-1:]])
    known = _simulation(measured, tmp_path / "known.csv")
    assert known.baseline["error"] == pytest.approx(1 - whole["accuracy"].iloc[-1])
    assert "predicted" not in known.note


def test_what_is_nearest_to_a_failed_policy_fails(whole: pd.DataFrame, tmp_path: Path) -> None:
    ruined = whole.columns[0]
    failed = whole[ruined] == whole[ruined].min()
    frame = whole.assign(accuracy=whole["accuracy"].mask(failed)).sample(150, random_state=0)
    found = _simulation(frame, tmp_path / "table.csv")
    rng = np.random.default_rng(0)
    policies = [SPACE.decode(SPACE.sample(rng)) for _ in range(200)]
    right = [found.estimate(p).ok == (p[ruined] > whole[ruined].min()) for p in policies]
    assert np.mean(right) > 0.85
    gone = frame[frame["accuracy"].isna()].iloc[0]
    answer = found.estimate(Policy({name: int(gone[name]) for name in SPACE.to_dict()["genes"]}))
    assert answer.reason == "the nearest policy of the table failed"
    assert "nearest to one that failed" in found.note


@pytest.mark.slow
def test_words_that_make_sense_together_only_are_for_trees(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words, genes = np.array(["none", "skip", "conv1", "conv3", "pool"]), tuple("abcde")
    chosen = np.unique(rng.integers(5, size=(500, 5)), axis=0)
    pairs, prices = rng.normal(size=(4, 5, 5)), rng.uniform(1, 9, size=(5, 5))
    together = sum(pairs[g, chosen[:, g], chosen[:, g + 1]] for g in range(4))
    frame = pd.DataFrame(words[chosen], columns=list(genes))
    frame["accuracy"] = 0.5 + 0.05 * together
    frame["macs"] = prices[np.arange(5), chosen].sum(axis=1)
    found = _simulation(frame, tmp_path / "table.csv", genes)
    assert isinstance(found, Surrogate)
    assert found.quality.regression == TREES
    assert found.quality.r2 > 0.7
    assert found.quality.cost_error["macs"] < 1e-4
    assert "favoured" not in found.note
    largest = found.estimate(found.space.largest)
    assert largest == found.estimate(found.space.largest)


def test_costs_that_scatter_are_smoothed_and_computed_ones_exact() -> None:
    space = SearchSpace([Gene(f"channels:{n}", "channels", (1, 2, 4, 8)) for n in "abcde"])
    rng = np.random.default_rng(0)
    indices = np.array(list(itertools.product(range(4), repeat=5)))
    rng.shuffle(indices)
    kept = 2.0**indices
    exact = (kept[:, 1:] * kept[:, :-1]).sum(axis=1)
    scattered = exact * rng.lognormal(0, 0.1, len(exact))
    costs = np.stack(
        [exact, scattered, np.zeros(len(exact)), np.maximum(0, kept[:, 0] - 1)], axis=1
    )
    found = CostRegression(space, indices[:300], costs[:300]).predict(indices[300:])
    assert found[:, 0] == pytest.approx(exact[300:], rel=1e-5)
    assert np.abs(found[:, 1] / exact[300:] - 1).mean() < 0.05  # their noise: 0.08
    assert (found[:, 2] == 0).all()
    assert found[:, 3] == pytest.approx(costs[300:, 3], abs=1e-3)


def test_tables_of_few_policies_are_refused(part: tuple[Path, Surrogate], tmp_path: Path) -> None:
    frame = pd.read_csv(part[0])
    frame.loc[LEAST - 1 :, "accuracy"] = np.nan
    with pytest.raises(StudyError, match=f"at least {LEAST} that worked .* has {LEAST - 1}"):
        _simulation(frame, tmp_path / "table.csv")


def test_the_commands_replay_a_part_and_say_how_well_it_is_known(
    part: tuple[Path, Surrogate], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out, page = str(part[0]), tmp_path / "out.json", tmp_path / "out.md"
    words = ["replay", table, "--strategies", "random", "--seeds", "2", "--budget", "60"]
    words += ["--json", str(out), "--markdown", str(page), "--resume"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    failed = json.loads(out.read_text())["failed"]
    assert set(failed) == {"random-0", "random-1"}
    share = f"Failed, of what was asked: random {sum(failed.values()) / 2:.1%}"
    assert sum(failed.values()) > 0
    for text in (printed, page.read_text()):
        assert "Simulated on a surrogate of the table" in text
        assert "Kendall's tau" in text
        assert share in text
    assert "simulated on a surrogate of a table" in page.read_text()
    assert main([*words, "--strategies", "uniform"]) == 0
    assert share in capsys.readouterr().out
    assert main(["bench", "ablation", table, "--seeds", "1", "--budget", "3"]) == 0
    ablated = capsys.readouterr().out
    assert "Kendall's tau" in ablated
    assert all(name in ablated for name in PARTS)
    assert main([*words[:-5], "--constraints", "macs <= 1"]) == 2
    error = capsys.readouterr().err
    assert "none of the table meets" in error
    assert error.count("\n") == 1


def test_a_space_of_whatever_size_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More policies than a float holds are told apart from few by their number's digits only."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    chosen = rng.integers(1, 3, size=(LEAST - 1, 1100))
    frame = pd.DataFrame(chosen, columns=[f"channels:{i}" for i in range(1100)])
    frame.assign(accuracy=0.5, macs=chosen.sum(axis=1)).to_csv("table.csv", index=False)
    assert main(["replay", "table.csv"]) == 2
    assert "space's about 10^331 policies" in capsys.readouterr().err
