"""The Ray engine: contestants as Tune trials over a pool of evaluators.

The outer level is Ray Tune: one trial is one contestant, with Tune's checkpoints, failure policy
and callbacks. The hot level is plain actors: a dispatcher that owns the ledger, merges identical
requests in flight and serves contestants in turn, and evaluators that it feeds. This is the only
file that imports ray.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from automl_compress.engine.checkpoint import load_state, save_state
from automl_compress.engine.contestant import Contestant, Request, Standing
from automl_compress.engine.engine import FINALISTS, EngineSettings, Listener, Race
from automl_compress.errors import EngineError, InterruptedStudy
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator, answer
from automl_compress.ledger import ContestantRecord, Ledger, Place
from automl_compress.search import Problem
from automl_compress.space import Policy

CONTESTANT_CPUS: Final = 0.01
"""Share of a processor a contestant books: it mostly waits for evaluators."""
ATTEMPTS: Final = 3
"""How often an evaluation is tried when its evaluator dies under it."""
RESTARTS: Final = 3
"""How often Tune restarts a failing contestant from its checkpoint."""
SHARED_BYTES: Final = 2**16
"""Tensors of so many bytes are shared by the processes of a machine."""
CHECKPOINT_SECONDS: Final = 5.0
REPORT_SECONDS: Final = 0.5
"""Tune takes tens of milliseconds for a report, in which a contestant could have asked again."""
_CHECKPOINT: Final = "contestant.npz"


class ClusterEngine:
    """Contestants side by side on Ray, on this machine or a running cluster.

    Args:
        race: what to run.
        settings: workers, threads and address.
        folder: where Tune keeps its files.
    """

    def __init__(self, race: Race, settings: EngineSettings, folder: Path) -> None:
        self._race = race
        self._folder = folder
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _start_ray(settings)
        workers = settings.workers or max(1, int(ray.cluster_resources().get("CPU", 2)) - 1)
        # The ledger is a file beside the driver, so the dispatcher has to run on its machine.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        _share_large_tensors()
        estimators = ray.put((race.search, *race.measures.values()))
        self._dispatcher = _RemoteDispatcher.options(scheduling_strategy=here).remote(
            str(race.ledger),
            [estimators],
            {"": race.search.identity, **{n: e.identity for n, e in race.rungs.items()}},
            workers,
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
            tune.with_resources(trainable, {"cpu": CONTESTANT_CPUS}),
            param_space={"contestant": tune.grid_search([c.name for c in contestants])},
            tune_config=tune.TuneConfig(trial_dirname_creator=_trial_name, reuse_actors=False),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self._folder.resolve()),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[_Listening(listener)],
                verbose=0,
            ),
        )
        try:
            results = tuner.fit()
        except KeyboardInterrupt as reason:
            raise InterruptedStudy("stopped; all finished evaluations are saved") from reason
        if results.errors:
            raise EngineError(_reason(results.errors[0]))
        if any(not (result.metrics or {}).get("finished") for result in results):
            raise InterruptedStudy("stopped; all finished evaluations are saved")

    def measure(self, policies: Sequence[Policy], rung: str = FINALISTS) -> None:
        """Measure policies into the ledger, on all evaluators."""
        identity = self._race.measures[rung].identity
        try:
            ray.get(self._dispatcher.measure.remote(list(policies), rung, identity))
        except KeyboardInterrupt as reason:
            raise InterruptedStudy("stopped; all finished evaluations are saved") from reason
        except ray.exceptions.RayError as reason:
            raise EngineError(_reason(reason)) from reason

    def close(self) -> None:
        """Stop the actors, and Ray when it was started here."""
        ray.kill(self._dispatcher)
        if self._owns_ray:
            ray.shutdown()


def _share_large_tensors() -> None:
    """Have large tensors read from Ray's shared memory by all processes of a machine, not copied.

    Ray's own RAY_ENABLE_ZERO_COPY_TORCH_TENSORS forgets the order of axes in memory, which
    convolutions depend on, and takes small tensors too, such as counters that a network changes.
    Parameters stay copies: only plain tensors, such as images and samples, are shared, and they
    must not be written to.
    """
    import torch  # here, because contestants share this module and most need no torch

    ray.util.register_serializer(torch.Tensor, serializer=_to_array, deserializer=_to_tensor)


def _to_array(tensor: Any) -> tuple[list[int], Any]:
    """The tensor as an array in the order its axes have in memory, and that order.

    Small ones and those that NumPy has no type for are pickled as they always are.
    """
    ordinary = tensor.device.type == "cpu" and not tensor.is_sparse and not tensor.requires_grad
    if not ordinary or tensor.nbytes < SHARED_BYTES or str(tensor.dtype) == "torch.bfloat16":
        return [], pickle.dumps(tensor)
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return order, tensor.permute(order).contiguous().numpy()


def _to_tensor(saved: tuple[list[int], Any]) -> Any:
    import torch

    order, values = saved
    if not order:
        return pickle.loads(values)  # noqa: S301
    back = [order.index(axis) for axis in range(len(order))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values).permute(back)


def ray_works() -> str:
    """Start and stop Ray on this machine; empty when that works, else the reason."""
    if ray.is_initialized():
        return ""
    try:
        _start_ray(EngineSettings(workers=1))
    except EngineError as reason:
        return str(reason)
    ray.shutdown()
    return ""


def _start_ray(settings: EngineSettings) -> None:
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": str(settings.threads),
        # Waiting OpenMP threads must not spin: two beside one busy core ran 15 times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Networks of the user's own come from the current folder.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.getenv("PYTHONPATH")))),
    }
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner is not ours
    where: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        cores = settings.workers or len(os.sched_getaffinity(0))
        where = {"num_cpus": cores + 1, "include_dashboard": False}  # one more for contestants
    try:
        ray.init(
            **where,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as reason:
        raise EngineError(f"Ray could not be started or reached: {_reason(reason)}") from reason


def _trial_name(trial: Any) -> str:
    return str(trial.config["contestant"])


def _reason(error: BaseException) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _hear_nothing(_: Standing) -> None:
    pass


class _Listening(tune.Callback):  # type: ignore[misc]
    """Passes contestants' standings on to a listener in this process."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def __deepcopy__(self, memo: dict[int, Any]) -> _Listening:
        """Tune copies and stores its callbacks; a listener stays with its process."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _Listening, (_hear_nothing,)

    def on_trial_result(self, *_: Any, result: dict[str, Any], **__: Any) -> None:
        """Called by Tune for every report of a trial."""
        if "standing" in result:
            self._listener(Standing(**result["standing"]))


def _run_contestant(
    config: dict[str, Any],
    records: dict[str, ContestantRecord],
    problem: Problem,
    budget: int,
    dispatcher: Any,
) -> None:
    """A Tune trial: rounds of one contestant, from its checkpoint when it was restarted."""
    contestant = Contestant(records[config["contestant"]], problem, budget)
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as saved:
            contestant.load_state_dict(load_state(Path(saved) / _CHECKPOINT))
    saved_at = reported_at = time.monotonic()
    last: dict[str, Any] = {}
    while requests := contestant.next_round():
        evaluations, hits = ray.get(dispatcher.answer.remote(requests))
        last = {"standing": contestant.finish_round(evaluations, hits).to_dict()}
        now = time.monotonic()
        if now - saved_at >= CHECKPOINT_SECONDS:
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / _CHECKPOINT, contestant.state_dict())
                checkpoint = tune.Checkpoint.from_directory(folder)
                tune.report({**last, "finished": False}, checkpoint=checkpoint)
            saved_at = reported_at = now
        elif now - reported_at >= REPORT_SECONDS:
            tune.report({**last, "finished": False})
            reported_at = now
    tune.report({**last, "finished": True})


class _Evaluator:
    """Answers policies with the estimators, one at a time."""

    def __init__(self, estimators: tuple[Estimator, ...], threads: int) -> None:
        import torch  # here, because contestants share this module and most need no torch

        torch.set_num_threads(threads)
        self._estimators = {estimator.identity: estimator for estimator in estimators}

    def estimate(self, policy: Policy, estimator: str) -> Evaluation:
        """Measure a policy."""
        return answer(self._estimators[estimator], policy)


_RemoteEvaluator: Any = ray.remote(num_cpus=1)(_Evaluator)
_Key = tuple[str, str]


class _Scribe:
    """Commits to the ledger in a thread of its own, whatever has come meanwhile at once."""

    def __init__(self, path: str) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._opened = self._thread.submit(Ledger, path)
        self._waiting: list[tuple[Callable[[Ledger], None], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, change: Callable[[Ledger], None]) -> None:
        """Return when a change is committed.

        Raises:
            EngineError: it cannot be written.
        """
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((change, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            changes = [change for change, _ in batch]
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._thread, self._commit, changes)
            except Exception as reason:
                for _, done in batch:
                    done.set_exception(reason)
            else:
                for _, done in batch:
                    done.set_result(None)

    def _commit(self, changes: list[Callable[[Ledger], None]]) -> None:
        ledger = self._opened.result()
        with ledger.together():
            for change in changes:
                change(ledger)


class _Dispatcher:
    """Owns the ledger, merges identical requests in flight, keeps evaluators busy."""

    def __init__(
        self,
        ledger: str,
        estimators: list[Any],
        identities: dict[str, str],
        workers: int,
        threads: int,
    ) -> None:
        self._ledger = Ledger(ledger)
        self._scribe = _Scribe(ledger)
        self._finishing: set[asyncio.Task[None]] = set()
        self._estimators = estimators[0]
        self._identities = identities
        self._threads = threads
        self._workers = [self._new_evaluator() for _ in range(workers)]
        self._serving: list[asyncio.Task[None]] = []
        self._waiting: dict[str, deque[tuple[Request, str]]] = {}
        self._in_flight: dict[_Key, asyncio.Future[Evaluation]] = {}
        self._work = asyncio.Semaphore(0)

    def _new_evaluator(self) -> Any:
        return _RemoteEvaluator.remote(self._estimators, self._threads)

    async def answer(self, requests: list[Request]) -> tuple[list[Evaluation], int]:
        """Evaluations of one contestant's round, charged, and how many were hits."""
        answers = await asyncio.gather(
            *(self._evaluation(r, self._identities[r.rung]) for r in requests)
        )
        evaluations = [evaluation for evaluation, _ in answers]
        places = [request.place for request in requests]
        await self._scribe.write(lambda ledger: ledger.charge(places, evaluations))
        return evaluations, sum(hit for _, hit in answers)

    async def measure(self, policies: list[Policy], rung: str, estimator: str) -> None:
        """Put measurements after the race into the ledger."""
        requests = [Request(Place(rung, i, 0), policy) for i, policy in enumerate(policies)]
        await asyncio.gather(*(self._evaluation(r, estimator) for r in requests))

    async def _evaluation(self, request: Request, estimator: str) -> tuple[Evaluation, bool]:
        """From the ledger, from a request in flight, or from an evaluator."""
        key = (request.policy.key, estimator)
        found = self._ledger.find([key[0]], estimator)
        if key[0] in found:
            return found[key[0]], True
        if key in self._in_flight:
            return await self._in_flight[key], True
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request.place.contestant, deque()).append((request, estimator))
        self._work.release()
        if not self._serving:
            self._serving = [
                asyncio.create_task(self._serve(place)) for place in range(len(self._workers))
            ]
        return await future, False

    async def _serve(self, place: int) -> None:
        """Feed one evaluator, contestants in turn."""
        while True:
            await self._work.acquire()
            request, estimator = self._next_request()
            evaluation = await self._estimate(place, request.policy, estimator)
            task = asyncio.create_task(self._finish(request, evaluation))  # the evaluator goes on
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def _finish(self, request: Request, evaluation: Evaluation) -> None:
        """Commit an evaluation, then hand it to all who wait for it."""
        key = (request.policy.key, evaluation.estimator)
        future = self._in_flight[key]
        try:
            await self._scribe.write(lambda ledger: ledger.add(evaluation, request.place))
            future.set_result(evaluation)
        except Exception as reason:
            future.set_exception(reason)
        del self._in_flight[key]

    def _next_request(self) -> tuple[Request, str]:
        """The oldest request of the contestant that was served longest ago."""
        name = next(name for name, queue in self._waiting.items() if queue)
        queue = self._waiting.pop(name)
        found = queue.popleft()
        self._waiting[name] = queue  # now last in turn
        return found

    async def _estimate(self, place: int, policy: Policy, estimator: str) -> Evaluation:
        """Ask an evaluator; a dead one is replaced, and a policy that keeps killing them fails."""
        reason = ""
        for _ in range(ATTEMPTS):
            try:
                evaluation: Evaluation = await self._workers[place].estimate.remote(
                    policy, estimator
                )
            except ray.exceptions.RayError as error:
                reason = f"its evaluator died ({_reason(error)})"
                ray.kill(self._workers[place])
                self._workers[place] = self._new_evaluator()
            else:
                return evaluation
        return Evaluation.failed(policy, estimator, reason)


_RemoteDispatcher: Any = ray.remote(num_cpus=0)(_Dispatcher)
