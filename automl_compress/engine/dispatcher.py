"""The hot level of the Ray engine: a dispatcher, and the evaluators it feeds.

The dispatcher owns the ledger, merges identical requests in flight and serves contestants in turn.
Evaluators load this file, so it needs none of Ray Tune, which takes 60 MB of a process.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import ray

from automl_compress.engine.contestant import Request
from automl_compress.engine.memory import private_bytes
from automl_compress.engine.room import Pool
from automl_compress.errors import EngineError
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator, answer
from automl_compress.ledger import Ledger, Place
from automl_compress.space import Policy

ATTEMPTS: Final = 3
"""How often an evaluation is tried when its evaluator dies under it, and an evaluator started when
it dies in that."""
LATE_SECONDS: Final = 300.0
LATE_SHARE: Final = 20.0
"""An evaluation is late after so many seconds, and so many times those of the slowest before."""
ENDED_SHARE: Final = 6.0
"""How many times as long it may take until its evaluator is ended."""
SHARED_BYTES: Final = 2**16
"""Tensors of so many bytes are shared by the processes of a machine."""


def reason_of(error: BaseException) -> str:
    """The last line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def machine_of(error: BaseException) -> str:
    """The address of the machine that an error of Ray's came from, if it says so."""
    found = re.search(r"\bip=([^\s,)]+)", str(error))
    return "a machine" if found is None else found.group(1)


def share_large_tensors() -> None:
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


@dataclass(frozen=True)
class Usage:
    """What a pool of evaluators needs.

    Args:
        dispatcher_seconds: processor time of the dispatcher's process.
        evaluator_bytes: private memory of each evaluator.
    """

    dispatcher_seconds: float
    evaluator_bytes: tuple[int, ...]


class _Evaluator:
    """Answers policies with the estimators, one at a time."""

    def __init__(self, estimators: tuple[Estimator, ...], threads: int) -> None:
        # Networks have brought torch along; estimators without one are spared it.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        self._estimators = {estimator.identity: estimator for estimator in estimators}

    def estimate(self, policy: Policy, estimator: str) -> Evaluation:
        """Measure a policy."""
        return answer(self._estimators[estimator], policy)

    def ready(self) -> tuple[str, str]:
        """Return once this evaluator has started: where, and what its processor computes with.

        The latter is empty where estimators brought no torch along.
        """
        place = f"process {os.getpid()} on {ray.util.get_node_ip_address()}"
        if "torch" not in sys.modules:
            return place, ""
        return place, str(sys.modules["torch"].backends.cpu.get_cpu_capability())

    def private_bytes(self) -> int:
        """Memory of this process alone."""
        return private_bytes()


_RemoteEvaluator: Any = ray.remote(_Evaluator)
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
        self._started: dict[int, tuple[str, str]] = {}
        self._lost: list[str] = []
        self._late: dict[tuple[str, str], str] = {}
        self._serving: list[asyncio.Task[None]] = []
        self._waiting: dict[str, deque[tuple[Request, str]]] = {}
        self._in_flight: dict[_Key, asyncio.Future[Evaluation]] = {}
        self._work = asyncio.Semaphore(0)
        self._deaths: Counter[_Key] = Counter()
        self._failure = ""
        self._began = time.process_time()

    def _new_evaluator(self) -> Any:
        evaluator = _RemoteEvaluator.options(num_cpus=self._threads)
        return evaluator.remote(self._estimators, self._threads)

    async def answer(self, requests: list[Request]) -> tuple[list[Evaluation], int]:
        """Evaluations of one contestant's round, charged, and how many were hits."""
        places = [request.place for request in requests]
        self._ledger.check_asked_again(places, [request.policy for request in requests])
        answers = await asyncio.gather(
            *(self._evaluation(r, self._identities[r.rung]) for r in requests)
        )
        evaluations = [evaluation for evaluation, _ in answers]
        await self._scribe.write(lambda ledger: ledger.charge(places, evaluations))
        return evaluations, sum(hit for _, hit in answers)

    async def measure(
        self, policies: list[Policy], rung: str, estimator: str
    ) -> AsyncIterator[int]:
        """Put measurements after the race into the ledger; how many are there, after each."""
        requests = [Request(Place(rung, i, 0), policy) for i, policy in enumerate(policies)]
        asked = [asyncio.create_task(self._evaluation(r, estimator)) for r in requests]
        for done, measured in enumerate(asyncio.as_completed(asked), 1):
            await measured
            yield done

    async def pool(self) -> Pool:
        """How many evaluators are at work."""
        kinds = frozenset(kind for _, kind in self._started.values() if kind)
        asked = len(self._workers) - len(self._lost)
        return Pool(len(self._started), asked, kinds, tuple(self._lost), tuple(self._late.values()))

    async def grow(self, workers: int) -> None:
        """Have at least so many evaluators, those that are lost counted."""
        for place in range(len(self._workers), workers):
            self._workers.append(self._new_evaluator())
            if self._serving:
                self._serving.append(asyncio.create_task(self._serve(place)))

    async def usage(self) -> Usage:
        """What all this has needed so far."""
        held = await asyncio.gather(*(w.private_bytes.remote() for w in self._workers))
        return Usage(time.process_time() - self._began, tuple(held))

    async def _evaluation(self, request: Request, estimator: str) -> tuple[Evaluation, bool]:
        """From the ledger, from a request in flight, or from an evaluator."""
        key = (request.policy.key, estimator)
        found = self._ledger.find([key[0]], estimator)
        if key[0] in found:
            return found[key[0]], True
        if key in self._in_flight:
            return await self._in_flight[key], True
        if self._failure:
            raise EngineError(self._failure)
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request.place.contestant, deque()).append((request, estimator))
        self._work.release()
        if not self._serving:
            self._serving = [
                asyncio.create_task(self._serve(place)) for place in range(len(self._workers))
            ]
        return await future, False

    async def _serve(self, place: int) -> None:
        """Keep one evaluator busy, and start another when it dies.

        Nothing is asked before it has started: that may take until a machine has room for it. One
        that does not start is left to the others, as long as there are any.
        """
        failed = 0
        where, reason = "", ""
        while failed < ATTEMPTS:
            try:
                self._started[place] = await self._workers[place].ready.remote()
            except ray.exceptions.RayError as error:
                failed, where, reason = failed + 1, machine_of(error), reason_of(error)
            else:
                failed = 0
                await self._feed(place)
                del self._started[place]
            ray.kill(self._workers[place])
            if failed < ATTEMPTS:
                self._workers[place] = self._new_evaluator()
        self._lost.append(
            f"evaluators must start on every machine, but one did not on {where}, {ATTEMPTS} times "
            f"in a row ({reason}); machines of a cluster need the same packages"
        )
        if len(self._lost) == len(self._workers):
            self._fail(self._lost[-1])

    async def _feed(self, place: int) -> None:
        """Ask an evaluator, contestants in turn, until it dies or hangs."""
        evaluator = self._workers[place]
        while True:
            await self._work.acquire()
            request, estimator = self._next_request()
            asked = False
            try:
                if self._deaths[request.policy.key, estimator]:
                    await evaluator.ready.remote()  # or its machine is gone, whatever is asked
                asked = True
                evaluation = await self._asked(place, request.policy, estimator)
            except ray.exceptions.RayError as error:
                reason = f"its evaluator died ({reason_of(error)})"
                self._ask_again(request, estimator, reason, counts=asked)
                return
            except TimeoutError as error:
                self._ask_again(request, estimator, str(error), counts=True)
                return
            self._finish_soon(request, evaluation)  # the evaluator goes on

    async def _asked(self, place: int, policy: Policy, estimator: str) -> Evaluation:
        """What an evaluator says of a policy.

        Raises:
            TimeoutError: it takes so long that it will hardly ever answer.
        """
        asked = self._workers[place].estimate.remote(policy, estimator)
        waiting: asyncio.Future[Evaluation] = asyncio.ensure_future(asked)
        clock = asyncio.get_running_loop().time
        began = clock()
        while not (await asyncio.wait([waiting], timeout=LATE_SECONDS))[0]:
            slowest = self._ledger.slowest(estimator)
            late = max(LATE_SECONDS, LATE_SHARE * (slowest or 0.0))
            if clock() - began >= late:
                process = self._started[place][0]
                # Where no answer is known yet, one line speaks for all who wait.
                which = (estimator, "") if slowest is None else (policy.key, process)
                self._late.setdefault(which, _what_is_late(policy, process, late, slowest))
            if slowest is not None and clock() - began >= ENDED_SHARE * late:
                waiting.cancel()
                raise TimeoutError(
                    f"its evaluator did not answer for {ENDED_SHARE * late:.0f} s, and was ended"
                )
        return waiting.result()

    def _ask_again(self, request: Request, estimator: str, reason: str, *, counts: bool) -> None:
        """Have a request done next; a policy that keeps killing its evaluators fails."""
        key = (request.policy.key, estimator)
        self._deaths[key] += counts
        if self._failure:
            self._in_flight.pop(key).set_exception(EngineError(self._failure))
        elif self._deaths[key] == ATTEMPTS:
            reason = f"{reason}; 'resume --retry-failed' tries it again"
            self._finish_soon(request, Evaluation.failed(request.policy, estimator, reason))
        else:
            queue = self._waiting.setdefault(request.place.contestant, deque())
            queue.appendleft((request, estimator))
            self._work.release()

    def _fail(self, reason: str) -> None:
        """Tell all who wait for an evaluator, and who will ask, that there are no answers."""
        self._failure = reason
        for queue in self._waiting.values():
            while queue:
                request, estimator = queue.popleft()
                future = self._in_flight.pop((request.policy.key, estimator))
                future.set_exception(EngineError(reason))

    def _finish_soon(self, request: Request, evaluation: Evaluation) -> None:
        task = asyncio.create_task(self._finish(request, evaluation))
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


def _what_is_late(policy: Policy, place: str, late: float, slowest: float | None) -> str:
    """What to say of an evaluation that takes longer than it should."""
    if slowest is None:
        known = "no other has finished, so that nothing tells how long it may take"
    else:
        known = (
            f"the slowest other took {slowest:.1f} s: after {ENDED_SHARE * late:.0f} s its "
            "evaluator is ended"
        )
    return (
        f"policy {policy.key} has been evaluated for {late:.0f} s by {place}, and {known}; should "
        f"it hang, end that process: a policy is tried {ATTEMPTS} times"
    )


RemoteDispatcher: Any = ray.remote(num_cpus=0)(_Dispatcher)
