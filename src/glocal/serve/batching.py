"""Dynamic batching: requests of one model that wait for it are computed together.

A model that is idle begins at once. While it computes, requests wait, and those of equal options and like length become
the next batch. After a batch of several requests, the model waits for up to `max_wait` for more of them, since the
clients that it has just answered are about to send their next ones.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

PADDING = 0.2
"""Largest share of a batch that may be padding."""


class OverloadError(Exception):
    """As many requests as may wait are waiting."""


@runtime_checkable
class Call(Hashable, Protocol):
    """What is computed. Requests whose calls are equal may share a batch."""

    def __call__(self, inputs: list[Any], /) -> Sequence[Any]:
        """Return the result of each input, which does not depend on the other inputs."""


@dataclass(eq=False)
class Job:
    """A request that waits."""

    call: Call
    inputs: Sequence[object]
    length: int
    """Size of the longest input, in any unit: those of like length are computed together."""
    result: "asyncio.Future[Sequence[object]]"
    arrived: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    def finish(self, results: Sequence[object]) -> None:
        """Give the results to who waits for them, if anybody still does."""
        if not self.result.cancelled():
            self.result.set_result(results)

    def fail(self, error: BaseException) -> None:
        """Raise an error where the results are waited for."""
        if not self.result.cancelled():
            self.result.set_exception(error)


class Batcher:
    """Computes the requests of one model in a thread of its own. Everything else happens in the event loop."""

    def __init__(
        self,
        max_batch: int,
        max_wait: float | int,
        max_queue: int,
        observe: Callable[[int], None] = lambda inputs: None,
    ) -> None:
        """`max_wait` is in milliseconds; `observe` is told the number of inputs of each batch."""
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait / 1000, max_queue
        self.observe = observe
        self.waiting: deque[Job] = deque()
        self.arrival = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "glocal-batches")
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute what waits, until `close`."""
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def close(self) -> None:
        """End the thread; requests that still wait are cancelled."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        for job in self.waiting:
            job.result.cancel()
        self.thread.shutdown()

    async def compute(self, call: Call, inputs: Sequence[object], length: int = 0) -> Sequence[Any]:
        """Return the result of each input. A caller that is cancelled leaves the queue.

        Raises OverloadError if `max_queue` requests are waiting, and whatever the call raises for these inputs.
        """
        if (waiting := self.queue_length()) >= self.max_queue:
            raise OverloadError(f"{waiting} requests are waiting for this model; try again later")
        job = Job(call, inputs, length, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        self.arrival.set()
        return await job.result

    async def run(self) -> None:
        """Compute batch after batch."""
        batch: list[Job] = []
        while True:
            await self.wait_for_jobs(linger=len(batch) > 1)
            batch = self.take_batch()
            if batch:
                await self.answer(batch)

    async def wait_for_jobs(self, linger: bool) -> None:
        """Wait for a job; with `linger`, for up to `max_wait` after its arrival until there is a whole batch."""
        while not self.waiting:
            await self.next_arrival(None)
        end = self.waiting[0].arrived + self.max_wait
        while linger and self.waiting and sum(len(job.inputs) for job in self.alike()) < self.max_batch:
            left = end - asyncio.get_running_loop().time()
            if left <= 0 or not await self.next_arrival(left):
                return

    async def next_arrival(self, timeout: float | None) -> bool:
        """Wait for another job; False where none came in time."""
        self.arrival.clear()
        try:
            async with asyncio.timeout(timeout):
                return await self.arrival.wait()
        except TimeoutError:
            return False

    def queue_length(self) -> int:
        """Return how many requests wait; those whose caller was cancelled leave the queue here."""
        if any(job.result.cancelled() for job in self.waiting):
            self.waiting = deque(job for job in self.waiting if not job.result.cancelled())
        return len(self.waiting)

    def alike(self) -> list[Job]:
        """Return the jobs that the oldest one may be computed with, itself first, then by likeness of length."""
        oldest = self.waiting[0]
        same = [job for job in self.waiting if job.call == oldest.call]
        return sorted(same, key=lambda job: abs(job.length - oldest.length))  # stable: of equal ones the older

    def take_batch(self) -> list[Job]:
        """Remove the next batch from the queue: the oldest job, and those most like it, up to `max_batch` inputs.

        Inputs are padded to the longest one; a job that would make the batch more than a fifth padding stays.
        """
        batch: list[Job] = []
        inputs = own = longest = 0
        for job in self.alike() if self.queue_length() else []:
            count = inputs + len(job.inputs)
            total, most = own + job.length * len(job.inputs), max(longest, job.length)
            if not batch or (count <= self.max_batch and total >= (1 - PADDING) * most * count):
                batch.append(job)
                inputs, own, longest = count, total, most
        chosen = set(map(id, batch))
        self.waiting = deque(job for job in self.waiting if id(job) not in chosen)
        return batch

    async def answer(self, batch: list[Job]) -> None:
        """Compute a batch, and give each job its results.

        Where the inputs of a batch are refused, its jobs are computed one by one, so that each gets its own answer.
        """
        inputs = [one for job in batch for one in job.inputs]
        computing = asyncio.get_running_loop().run_in_executor(self.thread, batch[0].call, inputs)
        await asyncio.wait([computing])
        error = computing.exception()
        if error is None:
            self.observe(len(inputs))
            results = iter(computing.result())
            for job in batch:
                job.finish([next(results) for _ in job.inputs])
        elif len(batch) > 1:
            for job in batch:
                await self.answer([job])
        else:
            batch[0].fail(error)
