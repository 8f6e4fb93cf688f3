"""Which requests are computed together, and what each of them gets."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from glocal.errors import GlocalError
from glocal.serve.batching import Batcher, OverloadError


@dataclass(frozen=True)
class Double:
    """Doubles numbers, while a test holds it up; refuses negative ones."""

    name: str = "a"
    batches: list = field(default_factory=list, compare=False)
    may_run: threading.Event = field(default_factory=threading.Event, compare=False)

    def __call__(self, inputs):
        self.batches.append(inputs)
        assert self.may_run.wait(10)
        if any(number < 0 for number in inputs):
            raise GlocalError(f"{min(inputs)} was given; expected 0 or more")
        if 13 in inputs:
            raise RuntimeError("a fault")
        return [2 * number for number in inputs]


def serve(test, **limits):
    """Run a test with a batcher."""

    async def run():
        batcher = Batcher(**{"max_batch": 8, "max_wait": 1000, "max_queue": 100} | limits)
        batcher.start()
        try:
            await test(batcher)
        finally:
            await batcher.close()

    asyncio.run(run())


async def ask(batcher, call, *requests):
    """Send requests while the model computes another one, and return what each gets; errors too."""
    tasks = [asyncio.create_task(batcher.compute(call, [0]))]
    while not call.batches:
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batcher.compute(*each)) for each in requests]
    await asyncio.sleep(0.01)
    call.may_run.set()
    return (await asyncio.gather(*tasks, return_exceptions=True))[1:]


def test_an_idle_model_begins_at_once():
    async def test(batcher):
        call = Double()
        call.may_run.set()
        async with asyncio.timeout(0.5):  # half of max_wait
            assert await batcher.compute(call, [1, 2]) == [2, 4]

    serve(test)


def test_requests_that_wait_are_computed_together_and_each_gets_its_own():
    async def test(batcher):
        call = Double()
        assert await ask(batcher, call, (call, [1]), (call, [2, 3]), (call, [4])) == [[2], [4, 6], [8]]
        assert call.batches == [[0], [1, 2, 3, 4]]

    sizes = []
    serve(test, observe=sizes.append)
    assert sizes == [1, 4]


def test_a_batch_is_no_larger_than_allowed_and_a_request_is_not_divided():
    async def test(batcher):
        call = Double()
        requests = [(call, [1, 2, 3]), (call, [4, 5, 6]), (call, [7]), (call, list(range(20, 31)))]
        assert await ask(batcher, call, *requests) == [[2 * n for n in inputs] for _, inputs in requests]
        assert call.batches == [[0], [1, 2, 3, 7], [4, 5, 6], list(range(20, 31))]

    serve(test, max_batch=4, max_wait=0)


def test_unequal_calls_are_computed_apart():
    async def test(batcher):
        call, other = Double(), Double("b")
        other.may_run.set()
        assert await ask(batcher, call, (call, [1]), (other, [2]), (call, [3])) == [[2], [4], [6]]
        assert call.batches == [[0], [1, 3]]
        assert other.batches == [[2]]

    serve(test, max_wait=0)


def test_the_oldest_request_is_joined_by_those_of_like_length():
    async def test(batcher):
        call = Double()
        requests = [(call, [1], 50), (call, [2], 9), (call, [3], 52), (call, [4], 8), (call, [5], 49)]
        await ask(batcher, call, *requests)
        assert [sorted(batch) for batch in call.batches] == [[0], [1, 3, 5], [2, 4]]

    serve(test, max_batch=3, max_wait=0)


def test_a_batch_is_padded_by_a_fifth_at_most():
    async def test(batcher):
        call = Double()
        await ask(batcher, call, (call, [1], 100), (call, [2], 40), (call, [3], 70), (call, [4], 35), (call, [5], 90))
        assert [sorted(batch) for batch in call.batches] == [[0], [1, 3, 5], [2, 4]]  # 260 of 300, 75 of 80

    serve(test, max_batch=8, max_wait=0)


def test_an_error_is_that_of_the_request_that_caused_it():
    async def test(batcher):
        call = Double()
        good, bad, fault, last = await ask(batcher, call, (call, [1]), (call, [-2]), (call, [13]), (call, [4]))
        assert (good, last) == ([2], [8])
        assert isinstance(bad, GlocalError)
        assert str(bad) == "-2 was given; expected 0 or more"
        assert isinstance(fault, RuntimeError)
        assert await batcher.compute(call, [5]) == [10]  # the thread lives on

    serve(test)


def test_under_load_a_batch_waits_for_more_but_no_longer_than_allowed():
    async def test(batcher):
        call = Double()
        await ask(batcher, call, (call, [1]), (call, [2]))
        first = asyncio.create_task(batcher.compute(call, [3]))
        await asyncio.sleep(0.05)
        assert await batcher.compute(call, [4]) == [8]
        assert await first == [6]
        assert call.batches[-1] == [3, 4]
        start = asyncio.get_running_loop().time()
        assert await batcher.compute(call, [5]) == [10]
        assert 0.2 <= asyncio.get_running_loop().time() - start < 2

    serve(test, max_wait=250)


def test_a_full_batch_waits_for_nothing():
    async def test(batcher):
        call = Double()
        await ask(batcher, call, (call, [1]), (call, [2]))
        async with asyncio.timeout(5):
            assert await asyncio.gather(batcher.compute(call, [3]), batcher.compute(call, [4])) == [[6], [8]]

    serve(test, max_batch=2, max_wait=60_000)


def test_a_full_queue_refuses_and_one_who_leaves_makes_room():
    async def test(batcher):
        call = Double()
        running = asyncio.create_task(batcher.compute(call, [0]))
        while not call.batches:
            await asyncio.sleep(0.001)
        waiting = [asyncio.create_task(batcher.compute(call, [number])) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="2 requests are waiting"):
            await batcher.compute(call, [3])
        waiting[0].cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(batcher.compute(call, [4]))
        await asyncio.sleep(0)
        call.may_run.set()
        assert [await running, await waiting[1], await last] == [[0], [4], [8]]
        assert call.batches == [[0], [2, 4]]  # the one who left was not computed

    serve(test, max_queue=2)
