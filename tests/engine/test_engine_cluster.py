from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from engine_doubles import FailingOnce, Unstartable
from engine_races import (
    CONTESTANTS,
    LADDER,
    NETWORK,
    climbed,
    frame,
    ledger_size,
    race,
    table,
)
from ray.exceptions import RayError

from automl_compress.engine.contestant import Standing
from automl_compress.engine.engine import Engine, EngineSettings, Race, RungStanding
from automl_compress.engine.room import Pool
from automl_compress.engine.serial import SerialEngine
from automl_compress.errors import EngineError, InputError, StudyError
from automl_compress.ledger import ContestantRecord, Ledger, StudyResult

pytestmark = [
    pytest.mark.cluster,
    # Ray leaves sockets and processes to the operating system; none of them is ours to close.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a token, and Ray is asked whether a cluster needs it."""
    from automl_compress.engine import cluster

    monkeypatch.setattr(cluster, "_has_token", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


def _run(folder: Path, workers: int, **estimator: object) -> list[Standing]:
    from automl_compress.engine.cluster import ClusterEngine

    heard: list[Standing] = []
    handlers = [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGUSR1)]
    engine = ClusterEngine(race(folder, **estimator), EngineSettings(workers=workers), folder)
    try:
        engine.run(CONTESTANTS, heard.append)
        assert [signal.getsignal(which) for which in (signal.SIGINT, signal.SIGUSR1)] == handlers
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


def _check_race(folder: Path, heard: list[Standing], expected: pd.DataFrame) -> None:
    """The serial race's table; every policy was measured once, and the last word is heard."""
    pd.testing.assert_frame_equal(frame(folder), expected)
    made = race(folder).search.made()
    assert len(made) == len(set(made)) == expected["policy_key"].nunique()
    assert ledger_size(folder) == len(made) + 1
    last = {standing.contestant: standing.done for standing in heard}
    assert last == expected.groupby("contestant").size().to_dict()
    with Ledger(folder / "ledger.sqlite") as ledger:
        assert ledger.find([NETWORK.space.largest.key], race(folder).test.identity)


@pytest.mark.usefixtures("ray_here")
def test_a_race_goes_as_serially_although_an_evaluator_and_a_contestant_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An evaluator is replaced and its policy tried again, a contestant goes on from its
    checkpoint. Evaluators that find no room, as when a machine is gone, hold nothing up, and it is
    said what they wait for."""
    import ray

    from automl_compress.engine import cluster

    monkeypatch.setattr(cluster, "WATCH_SECONDS", 0.1)
    expected = _serial(tmp_path / "serial")
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.setattr(cluster, "_run_contestant", FailingOnce(folder))
    heard = _run(folder, int(ray.cluster_resources()["CPU"]) + 1, deadly="4")
    assert list(folder.glob("*.died"))
    assert (folder / "failed").exists()
    assert (folder / "restored").exists()
    _check_race(folder, heard, expected)
    assert "evaluators are at work" in caplog.text


@pytest.mark.usefixtures("ray_here")
def test_evaluators_that_cannot_start_are_told(tmp_path: Path) -> None:
    """No policy is to blame, and none is in the ledger."""
    from automl_compress.engine.cluster import ClusterEngine

    bare = race(tmp_path)
    broken = replace(bare, search=Unstartable(tmp_path / "made.log"))
    engine = ClusterEngine(broken, EngineSettings(workers=2), tmp_path)
    said = (
        r"did not on [\d.]+, 3 times in a row \(.* No module named 'theirs'\).* the same packages"
    )
    try:
        with pytest.raises(EngineError, match=said):
            engine.run(CONTESTANTS[:1], lambda _: None)
        with pytest.raises(EngineError, match=said):
            engine.measure([NETWORK.space.largest])
    finally:
        engine.close()
    assert not ledger_size(tmp_path)


@pytest.mark.usefixtures("ray_here")
def test_a_failing_strategy_of_the_users_own_is_told_and_not_restarted(tmp_path: Path) -> None:
    from automl_compress.engine.cluster import ClusterEngine

    own = "engine_doubles:FailingStrategy"
    engine = ClusterEngine(race(tmp_path), EngineSettings(workers=2), tmp_path)
    try:
        with pytest.raises(StudyError) as caught:
            engine.run([ContestantRecord(f"{own}-0", own, 0)], lambda _: None)
    finally:
        engine.close()
    said = "must not fail, but raised ValueError: 8 are too many; correct it"
    assert str(caught.value) == f"'tell' of strategy '{own}' {said}"
    assert len(race(tmp_path).search.made()) == 8


@pytest.mark.usefixtures("ray_here")
def test_a_strategy_that_asks_otherwise_than_before_is_refused(tmp_path: Path) -> None:
    from automl_compress.engine.cluster import ClusterEngine

    def run(engine: Engine, strategy: str) -> None:
        try:
            engine.run([ContestantRecord("mine-0", strategy, 0)], lambda _: None)
        finally:
            engine.close()

    mine = race(tmp_path)
    run(SerialEngine(mine), "engine_doubles:own_random")
    with pytest.raises(StudyError, match="'mine-0' asks otherwise at evaluation 0; restore"):
        run(ClusterEngine(mine, EngineSettings(workers=2), tmp_path), "scaled-random")


@pytest.mark.usefixtures("ray_here")
def test_contestants_are_kept_beside_their_files() -> None:
    import ray

    from automl_compress.engine.cluster import this_machine

    assert ray.cluster_resources()[this_machine()] == 1.0


@pytest.mark.usefixtures("ray_here")
def test_an_undisturbed_race_and_its_ladder_go_as_serially(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the ledger is named from a folder that Ray was not started in."""
    from automl_compress.engine.cluster import ClusterEngine

    heard: dict[str, list[RungStanding]] = {"serial": [], "cluster": []}
    serial, one = climbed(tmp_path / "serial", listener=heard["serial"].append)
    folder = tmp_path / "cluster"
    monkeypatch.chdir(tmp_path)

    def on_ray(race: Race) -> ClusterEngine:
        near = replace(race, ledger=race.ledger.relative_to(tmp_path))
        return ClusterEngine(near, EngineSettings(workers=2), folder)

    cluster, other = climbed(folder, on_ray, heard["cluster"].append)
    pd.testing.assert_frame_equal(table(folder), table(tmp_path / "serial"))
    assert (folder / "tune/engine_doubles+own_random-0").is_dir()
    assert cluster == serial
    assert other.rungs == one.rungs
    found, expected = (StudyResult(tmp_path / kind) for kind in ("cluster", "serial"))
    for rung in LADDER:
        measured, wanted = found.rung(rung.name), expected.rung(rung.name)
        assert {k: e.metrics for k, e in measured.items()} == {
            k: e.metrics for k, e in wanted.items()
        }
    asked = {"full": 1 + len(found.rung("full")), "last": 1 + len(found.rung("last"))}
    told = [RungStanding(r, done, n) for r, n in asked.items() for done in range(1, n + 1)]
    assert heard == {"serial": told, "cluster": told}


@pytest.mark.parametrize(("workers", "asked"), [(None, [3, 7]), (2, [2])])
def test_machines_that_join_later_are_used_where_workers_are_not_counted(
    workers: int | None,
    asked: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from automl_compress.engine import cluster

    found: list[int] = []
    here = {"NodeID": "0a" * 28, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 4.0}}
    machines = [{**here, "Alive": True}]
    pretended = SimpleNamespace(
        pool=SimpleNamespace(remote=lambda: Pool(1, 1)),
        grow=SimpleNamespace(remote=found.append),
        remote=lambda *given: found.append(given[3]) or pretended,
    )
    context = SimpleNamespace(get_node_id=lambda: "0a" * 28)
    for name, value in (
        ("put", lambda what: what),
        ("get", lambda what, **_: what),
        ("nodes", lambda: machines),
        ("get_runtime_context", lambda: context),
        ("available_resources", dict),
    ):
        monkeypatch.setattr(cluster.ray, name, value)
    monkeypatch.setattr(cluster, "share_large_tensors", lambda: None)
    monkeypatch.setattr(cluster, "RemoteDispatcher", SimpleNamespace(options=lambda **_: pretended))
    engine = cluster.ClusterEngine(race(tmp_path), EngineSettings(workers=workers), tmp_path)
    machines.append({**machines[0], "NodeID": "other", "NodeManagerAddress": "10.0.0.2"})
    with engine._watched():
        pass
    assert found == asked
    assert "has left" not in caplog.text
    machines[-1]["Alive"] = False
    with engine._watched():
        pass
    assert "machine 10.0.0.2 has left the cluster" in caplog.text


def test_what_contestants_load_is_light() -> None:
    """Each is a process of its own, and torch takes seconds of a processor."""
    code = "import sys; import automl_compress.engine.cluster; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_cluster_that_does_not_answer_is_told_at_once(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automl_compress.engine.cluster import ray, start_ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked, which takes minutes"))
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        address = f"{host}:{bound.getsockname()[1]}"
        with pytest.raises(EngineError, match=re.escape(f"nothing does at '{address}'")):
            start_ray(EngineSettings(address=address))


def test_a_head_that_is_gone_is_told_before_ray_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from automl_compress.engine import cluster

    def told(address: tuple[str, int]) -> str:
        context = SimpleNamespace(gcs_address=f"{address[0]}:{address[1]}")
        monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
        return cluster._head_silent()

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert told(address) == ""
    with socket.socket() as bound:  # nobody listens there
        bound.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{bound.getsockname()[1]}"
        assert re.search(f"head .* nothing answers at '{place}'.*resume", told(bound.getsockname()))


def test_a_cluster_that_answers_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.engine.cluster import ray, start_ray

    asked: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **given: asked.append(given["address"]))
    with socket.create_server(("127.0.0.1", 0)) as server:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}", "auto"]
        for address in addresses:
            start_ray(EngineSettings(address=address))
    assert asked == addresses


@pytest.mark.parametrize(
    ("stated", "named", "expected"),
    [
        (None, None, "local"),
        (None, "", "local"),
        (None, "auto", "auto"),
        ("local", "auto", "local"),
        (None, "http://127.0.0.1:8265", "local"),
    ],
)
def test_no_cluster_is_joined_unasked(
    stated: str | None, named: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would join whatever runs on this machine."""
    from automl_compress.engine.cluster import ray, start_ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    asked: list[tuple[object, bool]] = []
    monkeypatch.setattr(
        ray, "init", lambda **given: asked.append((given["address"], "num_cpus" in given))
    )
    start_ray(EngineSettings(address=stated))
    assert asked == [(expected, expected == "local")]


def test_ctrl_c_waits_until_ray_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """And Ray is shut down then, which crashes when it is half started."""
    from automl_compress.engine import cluster

    done: list[str] = []

    def start(_: EngineSettings) -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("started")

    monkeypatch.setattr(cluster, "start_ray", start)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: done.append("shut down"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cluster.ray_running(EngineSettings()):
        done.append("ran")
    assert done == ["started", "shut down"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_client_of_a_cluster_is_refused() -> None:
    """Ledger and checkpoints would be where it runs, and nobody else sees them."""
    from automl_compress.engine.cluster import start_ray

    with pytest.raises(InputError, match=r"on a machine of the cluster.*'ray://there:10001'"):
        start_ray(EngineSettings(address="ray://there:10001"))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ConnectionError("cannot reach it"), "cannot reach it .*set RAY_AUTH_MODE=token"),
        (RayError("no authentication token was found"), "no authentication token was found"),
    ],
)
def test_what_a_cluster_says_is_told(
    raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automl_compress.engine.cluster import ray, start_ray

    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(EngineError, match=said):
        start_ray(EngineSettings(address="auto"))


@pytest.mark.parametrize(("address", "ships"), [("auto", True), (None, False)])
def test_a_cluster_is_given_the_users_modules(
    address: str | None, ships: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automl_compress.engine.cluster import ray, start_ray

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "theirs.py").write_text("WIDTH = 3\n")
    module = ModuleType("theirs")
    module.__file__ = str(tmp_path / "theirs.py")
    monkeypatch.setitem(sys.modules, "theirs", module)
    found: list[dict[str, str]] = []

    def init(runtime_env: dict[str, str], **_: object) -> None:
        folder = runtime_env.get("working_dir")
        files = Path(folder).iterdir() if folder else ()
        found.append({file.name: file.read_text() for file in files})

    monkeypatch.setattr(ray, "init", init)
    start_ray(EngineSettings(address=address))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # a job has shipped what it needs
    start_ray(EngineSettings(address=address))
    assert found == [{"theirs.py": "WIDTH = 3\n"} if ships else {}, {}]


def test_variables_that_a_job_states_stay_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to start where they are replaced."""
    from automl_compress.engine.cluster import ray, start_ray

    found: list[set[str]] = []
    monkeypatch.setattr(
        ray, "init", lambda **given: found.append({*given["runtime_env"]["env_vars"]})
    )
    for job in ('{"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "2"}}}', '{"runtime_env": null}'):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
        start_ray(EngineSettings(address="auto"))
    assert found[1] - found[0] == {"OMP_NUM_THREADS"}


def test_a_contestant_whose_dispatcher_died_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No start of it would find another."""
    from ray.exceptions import ActorDiedError

    from automl_compress.engine import cluster

    def die(_: object) -> None:
        raise ActorDiedError

    told: list[dict[str, object]] = []
    monkeypatch.setattr(cluster.ray, "get", die)
    monkeypatch.setattr(cluster.tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(cluster.tune, "report", told.append)
    record = CONTESTANTS[1]
    dispatcher = SimpleNamespace(answer=SimpleNamespace(remote=list))
    config = {"contestant": record.name}
    cluster._run_contestant(config, {record.name: record}, NETWORK.problem(), 9, dispatcher)
    (last,) = told
    assert not last["finished"]
    assert not last["blames_user"]
    assert "must live as long as the study, but it died; see" in str(last["failure"])


def test_checkpoints_are_made_in_the_studys_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contestant that is killed meanwhile leaves nothing elsewhere."""
    from automl_compress.engine import cluster

    rounds = iter([["asked"], []])
    standing = Standing("nsga2-0", 1, 0, 0, None, None)
    contestant = SimpleNamespace(
        next_round=lambda: next(rounds),
        finish_round=lambda *_: standing,
        state_dict=lambda: {"position": 1},
    )
    made: list[str] = []
    monkeypatch.setattr(cluster, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(cluster.ray, "get", lambda _: ([], 0))
    monkeypatch.setattr(cluster.tune, "get_checkpoint", lambda: None)
    trial = SimpleNamespace(get_trial_dir=lambda: str(tmp_path))
    monkeypatch.setattr(cluster.tune, "get_context", lambda: trial)
    monkeypatch.setattr(cluster.tune, "report", lambda *_, checkpoint: made.append(checkpoint.path))
    dispatcher = SimpleNamespace(answer=SimpleNamespace(remote=list))
    cluster._race(contestant, dispatcher, {})
    assert [Path(folder).parent for folder in made] == [tmp_path]
    assert not list(tmp_path.iterdir())


def test_what_fails_is_told_once_and_not_by_tune(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tune would show a traceback for every try to save its own state, which nobody reads; on a
    full disk the ledger says what to do. So it would for each start of a trial that fails."""
    from ray.tune import tune
    from ray.tune.execution import experiment_state, tune_controller

    from automl_compress.engine.cluster import ray, start_ray

    monkeypatch.setattr(ray, "init", lambda **_: None)
    start_ray(EngineSettings(address="local"))
    experiment_state.logger.error("Saving experiment state to storage failed")
    tune_controller.logger.error("Trial task failed for trial")
    tune.logger.error("Trials did not complete")
    assert not caplog.records


def test_what_machines_publish_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that goes away Ray prints 50 lines of its log."""
    from automl_compress.engine.cluster import ray, start_ray

    worker = ray._private.worker
    usual = worker.listen_error_messages
    during: list[object] = []
    monkeypatch.setattr(ray, "init", lambda **_: during.append(worker.listen_error_messages))
    start_ray(EngineSettings(address="local"))
    assert during != [usual]
    assert worker.listen_error_messages is usual


@pytest.mark.parametrize(
    ("address", "mode", "token", "answers", "joined"),
    [
        ("auto", None, True, True, "disabled"),
        ("auto", None, True, False, None),  # which asks for the token
        ("auto", None, False, True, None),
        ("auto", "token", True, True, "token"),
        ("local", None, True, True, None),
    ],
)
def test_a_token_is_left_aside_where_a_cluster_has_none(
    address: str,
    mode: str | None,
    token: bool,
    answers: bool,
    joined: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray would join as if the cluster had one too; then no actor starts, and nothing says why."""
    from automl_compress.engine import cluster

    asked: list[str] = []

    def status(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        asked.append(env["RAY_AUTH_MODE"])
        assert command[1:] == ["-m", "ray.scripts.scripts", "status", "--address", "auto"]
        return SimpleNamespace(returncode=0 if answers else 1)

    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(cluster, "_has_token", lambda: token)
    monkeypatch.setattr(cluster.subprocess, "run", status)
    found: list[str | None] = []

    def init(**_: object) -> None:
        found.append(os.getenv("RAY_AUTH_MODE"))
        monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as Ray does; the next start goes by it

    monkeypatch.setattr(cluster.ray, "init", init)
    forgotten: list[str] = []
    config = SimpleNamespace(initialize=lambda _: forgotten.append("mode"))
    loader = SimpleNamespace(reset_cache=lambda: forgotten.append("token"))
    loaders = SimpleNamespace(instance=lambda: loader)
    monkeypatch.setattr(cluster.ray._raylet, "Config", config)  # that of a running Ray stays
    monkeypatch.setattr(cluster.ray._raylet, "AuthenticationTokenLoader", loaders)
    cluster.start_ray(EngineSettings(address=address))
    assert found == [joined]
    assert forgotten == (["mode", "token"] if joined == "disabled" else [])
    assert os.getenv("RAY_AUTH_MODE") == mode
    assert asked == (["disabled"] if address == "auto" and token and mode is None else [])


def test_rays_start_and_end_leave_sigterm_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.engine.cluster import ray, ray_running

    def ours(*_: object) -> None: ...

    def theirs(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", theirs)
    monkeypatch.setattr(ray, "shutdown", theirs)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with ray_running(EngineSettings(address="local")):
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)
