"""The Ray engine: contestants as Tune trials over a pool of evaluators.

The outer level is Ray Tune: one trial is one contestant, with Tune's checkpoints, failure policy
and callbacks. The hot level is plain actors, see `engine.dispatcher`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from automl_compress.engine.checkpoint import load_state, save_state
from automl_compress.engine.contestant import Contestant, Standing
from automl_compress.engine.dispatcher import (
    RemoteDispatcher,
    Usage,
    reason_of,
    share_large_tensors,
)
from automl_compress.engine.engine import (
    FINALISTS,
    EngineSettings,
    Listener,
    Race,
    RungListener,
    RungStanding,
    ignore,
)
from automl_compress.engine.room import (
    Pool,
    room_for,
    what_differs,
    what_left,
    what_waits,
)
from automl_compress.engine.shipping import copy_own_modules, import_roots
from automl_compress.errors import EngineError, InputError, InterruptedStudy, StudyError
from automl_compress.ledger import ContestantRecord
from automl_compress.search import Problem
from automl_compress.space import Policy

CONTESTANT_SHARE: Final = 0.001
"""Of the driver's machine, which a contestant books: it mostly waits for evaluators."""
RESTARTS: Final = 3
"""How often Tune restarts a failing contestant from its checkpoint."""
CHECKPOINT_SECONDS: Final = 5.0
REPORT_SECONDS: Final = 0.5
"""Tune takes tens of milliseconds for a report, in which a contestant could have asked again."""
LOCAL: Final = "local"
"""The address of a Ray of one's own on this machine."""
_UNREACHABLE: Final = "Ray could not be started or reached"
_AUTHENTICATE: Final = (
    "if it asks for a token, as clusters since Ray 2.59 do where '~/.ray/auth_token' exists, copy "
    "that file to all machines and set RAY_AUTH_MODE=token on them"
)
_AUTH_MODE: Final = "RAY_AUTH_MODE"
_TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set where `ray job submit` has brought the driver to the cluster."""
_DISPATCHER_DIED: Final = (
    "the process that keeps a study's ledger must live as long as the study, but it died; see that "
    "the machine that searches has memory left, then go on with 'resume'"
)
_CHECKPOINT: Final = "contestant.npz"
_TUNES_LOGS: Final = (
    "ray.tune.execution.experiment_state",
    "ray.tune.execution.tune_controller",
    "ray.tune.tune",
)
_PATIENCE_SECONDS: Final = 10.0
_STATUS_SECONDS: Final = 60.0
WATCH_SECONDS: Final = 30.0
"""How often it is looked whether evaluators have started; they take seconds."""

_logger = logging.getLogger(__name__)


class ClusterEngine:
    """Contestants side by side on Ray, which runs, on this machine or a cluster.

    Args:
        race: what to run.
        settings: workers, threads and address.
        folder: where Tune keeps its files.
    """

    def __init__(self, race: Race, settings: EngineSettings, folder: Path) -> None:
        self._race = race
        self._folder = folder
        self._threads = settings.threads
        self._grows = settings.workers is None
        self._said = {""}
        self._there = _addresses()
        # Ledger and checkpoints are files beside the driver, which other machines may not see:
        # dispatcher and contestants run on its machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        share_large_tensors()
        from automl_compress.engine.restore import torch_threads  # contestants need no torch

        with torch_threads(settings.threads):  # they draw their images now, if not before
            estimators = ray.put((race.search, *race.measures.values()))
        self._dispatcher = RemoteDispatcher.options(scheduling_strategy=here).remote(
            str(race.ledger.absolute()),  # actors have a folder of their own
            [estimators],
            {"": race.search.identity, **{n: e.identity for n, e in race.rungs.items()}},
            settings.workers or max(1, self._room()),
            settings.threads,
        )

    def run(self, contestants: Sequence[ContestantRecord], listener: Listener) -> None:
        """Run contestants as Tune trials until every one is done."""
        if not contestants:
            return
        trainable = tune.with_parameters(
            _run_contestant,
            records={record.name: record for record in contestants},
            problem=self._race.problem,
            budget=self._race.budget,
            dispatcher=self._dispatcher,
        )
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 0, this_machine(): CONTESTANT_SHARE}),
            param_space={"contestant": tune.grid_search([c.name for c in contestants])},
            tune_config=tune.TuneConfig(trial_dirname_creator=_trial_name, reuse_actors=False),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self._folder.resolve()),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[Listening(partial(_hear_standings, listener))],
                verbose=0,
            ),
        )
        try:
            with self._watched():
                results = fitted(tuner)
        except KeyboardInterrupt as reason:
            raise InterruptedStudy("stopped; all finished evaluations are saved") from reason
        if results.errors:
            raise EngineError(reason_of(results.errors[0])) from results.errors[0]
        for result in results:
            metrics = result.metrics or {}
            if failure := metrics.get("failure"):
                raise (StudyError if metrics["blames_user"] else EngineError)(failure)
        if any(not (result.metrics or {}).get("finished") for result in results):
            raise InterruptedStudy("stopped; all finished evaluations are saved")

    def measure(
        self, policies: Sequence[Policy], rung: str = FINALISTS, listener: RungListener = ignore
    ) -> None:
        """Measure policies into the ledger, on all evaluators."""
        identity = self._race.measures[rung].identity
        try:
            with self._watched():
                for done in self._dispatcher.measure.remote(list(policies), rung, identity):
                    listener(RungStanding(rung, ray.get(done), len(policies)))
        except KeyboardInterrupt as reason:
            raise InterruptedStudy("stopped; all finished evaluations are saved") from reason
        except ray.exceptions.RayActorError as reason:
            raise EngineError(_DISPATCHER_DIED) from reason
        except ray.exceptions.RayError as reason:
            raise EngineError(reason_of(reason)) from reason

    def usage(self) -> Usage:
        """What dispatcher and evaluators have needed so far."""
        found: Usage = ray.get(self._dispatcher.usage.remote())
        return found

    def close(self) -> None:
        """Stop the actors."""
        ray.kill(self._dispatcher)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While something inside waits for evaluators, it is said what these wait for."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,))
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event) -> None:
        ends = False
        while not ends:
            ends = over.wait(WATCH_SECONDS)
            if not ends and (silence := _head_silent()):
                self._warn({silence})  # what follows would not come back
            try:
                pool: Pool = ray.get(self._dispatcher.pool.remote(), timeout=_PATIENCE_SECONDS)
                waits = "" if ends else self._what_waits(pool)
                if self._grows:  # machines may have joined
                    self._dispatcher.grow.remote(self._room())
                before, self._there = self._there, _addresses()
            except ray.exceptions.RayError:
                continue  # who waits for answers is told
            left = what_left(before, self._there)
            self._warn({*left, *pool.lost, *pool.late, waits, what_differs(pool.kinds)})

    def _warn(self, remarks: set[str]) -> None:
        """Say what was not said before."""
        for remark in remarks - self._said:
            _logger.warning("%s", remark)
            self._said.add(remark)

    def _room(self) -> int:
        return room_for(_processors_beside_contestants(), self._threads)

    def _what_waits(self, pool: Pool) -> str:
        free = ray.available_resources().get("CPU", 0.0)
        return what_waits(pool, self._threads, [count for _, count in _machines()], free)


@contextmanager
def ray_running(settings: EngineSettings) -> Iterator[None]:
    """Ray is started inside, unless it runs already, and shut down in the end.

    Raises:
        EngineError: it cannot be started or reached.
    """
    if ray.is_initialized():
        yield
        return
    try:
        with _interrupted_afterwards():
            start_ray(settings)
        yield
    finally:
        with _sigterm_kept():
            ray.shutdown()


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """The first Ctrl-C inside takes effect at the end; a second one at once.

    Ray's start swallows it now and then, or leaves something behind that crashes at the exit.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # signals are somebody else's, or ignored
        return
    asked = threading.Event()

    def wait(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, wait)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


def ray_works() -> str:
    """Start and stop Ray on this machine; empty when that works, else the reason."""
    try:
        with ray_running(EngineSettings(workers=1, address=LOCAL)):
            return ""
    except EngineError as reason:
        return str(reason)


def start_ray(settings: EngineSettings) -> None:
    """Start Ray on this machine, or join a cluster, whose machines are given the user's modules.

    Raises:
        EngineError: that does not work.
        InputError: the address is a Ray client's.
    """
    address = _address(settings)
    _check_address(address)
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": str(settings.threads),
        # Waiting OpenMP threads must not spin: two beside one busy core ran 15 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Networks of the user's own come from there.
        "PYTHONPATH": os.pathsep.join(map(str, import_roots())),
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner is not ours
    # Nobody reads the state that Tune saves of itself; on a full disk, the ledger says what to do.
    # What fails a trial is raised, in one line, and would be shown with a traceback each time.
    for name in _TUNES_LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Contestants whose study is stopped would each show a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    where: dict[str, Any] = {"address": address}
    inherited: dict[str, str] = {}
    environment: dict[str, Any] = {}
    if address == LOCAL:
        # With an environment of its own every worker starts Python twice, and none is there early.
        inherited = variables
        cores = (settings.workers or 0) * settings.threads or len(os.sched_getaffinity(0))
        where |= {"num_cpus": cores + 1, "include_dashboard": False}  # one more for contestants
    else:
        inherited = _without_needless_token(address)
        stated = _job_variables()  # which Ray would refuse to replace
        environment["env_vars"] = {n: v for n, v in variables.items() if n not in stated}
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment(inherited),
        _sigterm_kept(),
        _machines_unheard(),
    ):
        ships = address != LOCAL and _JOB not in os.environ  # whose job ships its own
        if ships and copy_own_modules(Path(folder)):
            environment["working_dir"] = folder
        try:
            ray.init(
                **where,
                runtime_env=environment,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except ray.exceptions.RayError as reason:  # no token, or another one
            raise EngineError(f"{_UNREACHABLE}: {str(reason).splitlines()[0]}") from reason
        except (ConnectionError, RuntimeError, ValueError) as reason:
            hint = "" if address == LOCAL else f" ({_AUTHENTICATE})"
            raise EngineError(f"{_UNREACHABLE}: {reason_of(reason)}{hint}") from reason


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """SIGTERM does afterwards what it did before, if that was set from Python.

    The handler that Ray's start leaves prints the machine's stack and aborts the process, and its
    end has the system's own put in place, unknown to Python.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _machines_unheard() -> Iterator[None]:
    """A Ray that is started inside does not show what its machines publish as errors.

    Of one that went away these are 50 lines of its log, in the middle of the output. Ray has no
    setting for it.
    """
    listen = getattr(ray._private.worker, "listen_error_messages", None)
    if listen is None:  # another version has it elsewhere, and shows them
        yield
        return
    ray._private.worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        ray._private.worker.listen_error_messages = listen


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started inside have these variables; afterwards all are as before.

    So is the one by which Ray's start on one machine would have the next join a cluster by token.
    """
    before = {name: os.environ.get(name) for name in (*variables, _AUTH_MODE)}
    os.environ.update(variables)
    if _AUTH_MODE in variables:
        with suppress(AttributeError):  # another version has them elsewhere
            ray._raylet.Config.initialize("")  # or Ray goes by what an earlier start had set
            ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _without_needless_token(address: str) -> dict[str, str]:
    """What has Ray join a cluster as the cluster is, with a token or without.

    Ray keeps a token of every run on one machine and then joins `auto` as if the cluster had one
    too. If that was started without, nothing of the cluster may answer us, and no actor starts.
    """
    if address != "auto" or _AUTH_MODE in os.environ or not _has_token():
        return {}
    without = {_AUTH_MODE: "disabled"}
    asked = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(  # noqa: S603 - Ray's own command
            asked,
            env={**os.environ, **without},
            capture_output=True,
            timeout=_STATUS_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}
    return {} if done.returncode else without


def _has_token() -> bool:
    """Whether this machine has a token for clusters."""
    return any(map(os.getenv, _TOKENS)) or (Path.home() / ".ray" / "auth_token").is_file()


def _job_variables() -> set[str]:
    """Names of the variables that a job, as which this process was submitted, states itself."""
    job = json.loads(os.getenv(_JOB, "{}"))
    return set((job.get("runtime_env") or {}).get("env_vars") or {})


def _address(settings: EngineSettings) -> str:
    """Where Ray is: as the settings or else `RAY_ADDRESS` say, or only here.

    Ray itself would join any cluster it finds on this machine, whoever started it. An HTTP address
    is that of a server of jobs.
    """
    named = os.getenv("RAY_ADDRESS", "")
    return settings.address or ("" if named.startswith("http") else named) or LOCAL


def _check_address(address: str) -> None:
    """Check that something listens at a cluster's `host:port`; Ray itself tries for minutes.

    Addresses of any other form are left to Ray.

    Raises:
        EngineError: nothing does.
        InputError: this process would not be on a machine of the cluster.
    """
    if address.startswith("ray://"):
        raise InputError(
            f"a search must run on a machine of the cluster, where its files are, but the address "
            f"is '{address}'; run it there with --address auto"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        _call(address)
    except (OSError, OverflowError) as reason:
        raise EngineError(
            f"a cluster must answer at its address, but nothing does at '{address}' ({reason}); "
            "correct it, or start the cluster by 'ray start --head'"
        ) from reason


def _call(address: str) -> None:
    """Check that something listens at `host:port`.

    Raises:
        OSError: nothing does, within seconds.
        OverflowError: there is no such port.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()


def _head_silent() -> str:
    """What to say where the cluster's head does not answer; empty where it does.

    Without it Ray aborts this process after a minute, with a line of its own.
    """
    address = ray.get_runtime_context().gcs_address
    try:
        _call(address)
    except OSError as reason:
        return (
            f"the cluster's head must live as long as the study, but nothing answers at "
            f"'{address}' ({reason}); if it stays so for a minute, Ray ends this process: start a "
            "cluster again, then go on with 'resume'"
        )
    return ""


def fitted(tuner: tune.Tuner) -> tune.ResultGrid:
    """What a tuner finds; Ctrl-C and SIGUSR1 then do what they did before.

    Tune leaves its own handlers behind, which swallow the first signal after its end.
    """
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGUSR1)}
    try:
        return tuner.fit()
    finally:
        if threading.current_thread() is threading.main_thread():
            for which, handler in handlers.items():
                if handler is not None:  # one that Python did not set cannot be set again
                    signal.signal(which, handler)


def this_machine() -> str:
    """The resource that Ray gives the machine of this process alone."""
    own = ray.get_runtime_context().get_node_id()
    return next(f"node:{n['NodeManagerAddress']}" for n in ray.nodes() if n["NodeID"] == own)


def _machines() -> list[tuple[str, float]]:
    """Machines that are there, by Ray's name for them, and how many processors each has."""
    return [(n["NodeID"], n["Resources"].get("CPU", 0.0)) for n in ray.nodes() if n["Alive"]]


def _addresses() -> dict[str, str]:
    """Addresses of the machines that are there, by Ray's name for them."""
    return {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}


def _processors_beside_contestants() -> list[float]:
    """Of each machine, one left out on that of this process, where contestants run."""
    own = ray.get_runtime_context().get_node_id()
    return [count - (name == own) for name, count in _machines()]


def _trial_name(trial: Any) -> str:
    """The folder's name; a strategy of the user's own has a colon, which not all systems take."""
    return str(trial.config["contestant"]).replace(":", "+")


def _hear_standings(listener: Listener, result: dict[str, Any]) -> None:
    """Tell a listener of contestants what one of them reports."""
    if "standing" in result:
        listener(Standing(**result["standing"]))


class Listening(tune.Callback):  # type: ignore[misc]
    """Passes trials' reports on to a listener in this process."""

    def __init__(self, listener: Callable[[dict[str, Any]], None]) -> None:
        self._listener = listener

    def __deepcopy__(self, memo: dict[int, Any]) -> Listening:
        """Tune copies and stores its callbacks; a listener stays with its process."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Listening, (ignore,)

    def on_trial_result(self, *_: Any, result: dict[str, Any], **__: Any) -> None:
        """Called by Tune for every report of a trial."""
        self._listener(result)


def _run_contestant(
    config: dict[str, Any],
    records: dict[str, ContestantRecord],
    problem: Problem,
    budget: int,
    dispatcher: Any,
) -> None:
    """A Tune trial: rounds of one contestant, from its checkpoint when it was restarted."""
    last: dict[str, Any] = {}
    try:
        _race(Contestant(records[config["contestant"]], problem, budget), dispatcher, last)
    except (EngineError, InputError, ray.exceptions.RayActorError) as reason:
        # Another start of this contestant would not change it.
        died = isinstance(reason, ray.exceptions.RayActorError)
        said = _DISPATCHER_DIED if died else str(reason.args[0])
        failure = {"failure": said, "blames_user": isinstance(reason, InputError)}
        tune.report({**last, "finished": False, **failure})
        return
    tune.report({**last, "finished": True})


def _race(contestant: Contestant, dispatcher: Any, last: dict[str, Any]) -> None:
    """All rounds of a contestant.

    Args:
        contestant: as it begins.
        dispatcher: answers it.
        last: is given its standing after every round, as it is reported.
    """
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            contestant.load_state_dict(load_state(Path(saved) / _CHECKPOINT))
    saved_at = reported_at = time.monotonic()
    while requests := contestant.next_round():
        evaluations, hits = ray.get(dispatcher.answer.remote(requests))
        last["standing"] = contestant.finish_round(evaluations, hits).to_dict()
        now = time.monotonic()
        if now - saved_at >= CHECKPOINT_SECONDS:
            # Whoever is killed here leaves nothing outside the study's folder.
            with tempfile.TemporaryDirectory(dir=tune.get_context().get_trial_dir()) as folder:
                save_state(Path(folder) / _CHECKPOINT, contestant.state_dict())
                checkpoint = tune.Checkpoint.from_directory(folder)
                tune.report({**last, "finished": False}, checkpoint=checkpoint)
            saved_at = reported_at = now
        elif now - reported_at >= REPORT_SECONDS:
            tune.report({**last, "finished": False})
            reported_at = now
