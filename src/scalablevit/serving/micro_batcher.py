"""Requests that come one by one, gathered into batches for one worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[Result]


class MicroBatcher(Generic[Item, Result]):
    """Gathers items into batches and computes them in order, one batch at a time, on one thread of its own.

    A batch starts when it is full, or when its first item has waited long enough; while one is computed, the next
    gathers. If a batch fails, its items are computed one by one, so that the item at fault fails alone. An item whose
    caller has gone (a time-out, a lost connection) before its batch starts is left out.

    Args:
        compute: The results of some items, in their order.
        batch_size: Items at once, at most.
        wait_s: How long the first item of a batch waits for others, in seconds.
        on_batch: Told how many items each batch has.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        batch_size: int,
        wait_s: float,
        on_batch: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._compute, self._batch_size, self._wait_s, self._on_batch = compute, batch_size, wait_s, on_batch
        self._queue: asyncio.Queue[_Waiting[Item, Result] | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scalablevit-network")
        self._gathering: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many items no batch has taken yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begins to gather, in the running event loop."""
        self._gathering = asyncio.create_task(self._gather_and_compute())

    async def close(self) -> None:
        """Computes what waits, takes nothing more, and ends the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.put_nowait(None)
        if self._gathering is not None:
            await self._gathering
        self._thread.shutdown()

    async def submit(self, item: Item) -> Result:
        """The result of one item, when its batch has been computed.

        Raises:
            RuntimeError: If the batcher is closed.
        """
        if self._is_closed:
            raise RuntimeError("the batcher is closed")
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(item, answer))
        return await answer

    async def run_between(self, work: Callable[[], Answer]) -> Answer:
        """Something else that uses the network, on the same thread, between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _gather_and_compute(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = await self._gather()
            wanted = [each for each in batch if not each.answer.done()]
            if wanted:
                await self._answer(wanted)

    async def _gather(self) -> tuple[list[_Waiting[Item, Result]], bool]:
        """The next batch, and whether it is the last."""
        first = await self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        until = asyncio.get_running_loop().time() + self._wait_s
        while len(batch) < self._batch_size:
            try:
                each = self._queue.get_nowait() if not self._queue.empty() else await self._next_until(until)
            except TimeoutError:
                break
            if each is None:
                return batch, True
            batch.append(each)
        return batch, False

    async def _next_until(self, until: float) -> _Waiting[Item, Result] | None:
        async with asyncio.timeout_at(until):
            return await self._queue.get()

    async def _answer(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        self._on_batch(len(batch))
        computed = asyncio.get_running_loop().run_in_executor(
            self._thread, self._checked, [each.item for each in batch]
        )
        await asyncio.wait([computed])
        error = computed.exception()
        if error is not None and len(batch) > 1:
            for each in batch:
                await self._answer([each])
        elif error is not None:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
        else:
            for each, result in zip(batch, computed.result(), strict=True):
                if not each.answer.done():
                    each.answer.set_result(result)

    def _checked(self, items: Sequence[Item]) -> Sequence[Result]:
        results = self._compute(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(items)} items gave {len(results)} results")
        return results
