from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from engine_races import CONTESTANTS, LADDER, NETWORK, climbed, frame, ledger_size, race

from automl_compress.engine.contestant import Standing
from automl_compress.engine.engine import EngineSettings
from automl_compress.engine.serial import SerialEngine
from automl_compress.ledger import Ledger, StudyResult

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.xdist_group("ray"),
    # Ray leaves sockets and processes to the operating system; none of them is ours to close.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def _run(folder: Path, workers: int, **estimator: object) -> list[Standing]:
    from automl_compress.engine.cluster import ClusterEngine

    heard: list[Standing] = []
    engine = ClusterEngine(race(folder, **estimator), EngineSettings(workers=workers), folder)
    try:
        engine.run(CONTESTANTS, heard.append)
        engine.measure([NETWORK.space.largest])
    finally:
        engine.close()
    return heard


def _serial(folder: Path) -> pd.DataFrame:
    folder.mkdir()
    engine = SerialEngine(race(folder))
    engine.run(CONTESTANTS, lambda _: None)
    engine.close()
    return frame(folder)


@pytest.mark.usefixtures("ray_here")
def test_one_and_two_workers_and_serial_give_the_same_table(tmp_path: Path) -> None:
    expected = _serial(tmp_path / "serial")
    for workers in (1, 2):
        folder = tmp_path / f"workers{workers}"
        folder.mkdir()
        heard = _run(folder, workers)
        pd.testing.assert_frame_equal(frame(folder), expected)
        made = race(folder).search.made()
        assert len(made) == len(set(made)) == expected["policy_key"].nunique()
        last = {standing.contestant: standing.done for standing in heard}
        assert last == expected.groupby("contestant").size().to_dict()
        with Ledger(folder / "ledger.sqlite") as ledger:
            assert ledger.find([NETWORK.space.largest.key], race(folder).test.identity)


@pytest.mark.usefixtures("ray_here")
def test_a_dying_evaluator_is_replaced_and_its_policy_tried_again(tmp_path: Path) -> None:
    expected = _serial(tmp_path / "serial")
    folder = tmp_path / "cluster"
    folder.mkdir()
    _run(folder, 2, deadly="4")
    assert list(folder.glob("*.died"))
    pd.testing.assert_frame_equal(frame(folder), expected)
    assert ledger_size(folder) == expected["policy_key"].nunique() + 1


@pytest.mark.usefixtures("ray_here")
def test_a_failing_contestant_restarts_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automl_compress.engine import cluster

    expected = _serial(tmp_path / "serial")
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setattr(cluster, "_run_contestant", FailingOnce(folder))
    _run(folder, 2)
    assert (folder / "failed").exists()
    assert (folder / "restored").exists()
    pd.testing.assert_frame_equal(frame(folder), expected)


class FailingOnce:
    """A trial that dies once in its third round, with a checkpoint after every round."""

    __name__ = "failing_once"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, config: dict[str, object], **parameters: object) -> None:
        from ray import tune

        from automl_compress.engine import cluster
        from automl_compress.engine.contestant import Contestant

        folder = self._folder
        if tune.get_checkpoint() is not None:
            (folder / "restored").touch()
        finish = Contestant.finish_round

        def fail(self: Contestant, *arguments: object) -> object:
            if (
                self.record.name == "nsga2-0"
                and self._round == 2
                and not (folder / "failed").exists()
            ):
                (folder / "failed").touch()
                raise RuntimeError("the contestant's node went away")
            return finish(self, *arguments)  # type: ignore[arg-type]

        cluster.CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]
        Contestant.finish_round = fail  # type: ignore[method-assign, assignment]
        try:
            cluster._run_contestant(config, **parameters)  # type: ignore[arg-type]
        finally:
            Contestant.finish_round = finish  # type: ignore[method-assign]


@pytest.mark.usefixtures("ray_here")
def test_a_ladder_is_climbed_as_serially(tmp_path: Path) -> None:
    from automl_compress.engine.cluster import ClusterEngine

    serial, one = climbed(tmp_path / "serial")
    folder = tmp_path / "cluster"
    cluster, other = climbed(
        folder, lambda race: ClusterEngine(race, EngineSettings(workers=2), folder)
    )
    assert cluster == serial
    assert other.rungs == one.rungs
    found, expected = (StudyResult(tmp_path / kind) for kind in ("cluster", "serial"))
    for rung in LADDER:
        measured, wanted = found.rung(rung.name), expected.rung(rung.name)
        assert {k: e.metrics for k, e in measured.items()} == {
            k: e.metrics for k, e in wanted.items()
        }
