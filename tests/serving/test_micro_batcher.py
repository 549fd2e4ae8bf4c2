"""The micro-batcher: whose answer is whose, what fails alone, what is left out, and what is answered at the end."""

import asyncio
import threading

import pytest

from scalablevit.serving.micro_batcher import MicroBatcher


def squares(sizes, gate=None):
    """Squares of numbers, one for each; a negative number is a fault. `sizes` takes those of the batches."""

    def compute(numbers):
        if gate is not None:
            gate.wait()
        sizes.append(len(numbers))
        if min(numbers) < 0:
            raise ValueError(f"{min(numbers)} is negative")
        return [number**2 for number in numbers]

    return compute


def with_batcher(work, compute, **options):
    async def main():
        batcher = MicroBatcher(compute, **({"batch_size": 4, "wait_s": 0.02} | options))
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.close()

    return asyncio.run(main())


def submit_all(numbers):
    async def work(batcher):
        return await asyncio.gather(*map(batcher.submit, numbers), return_exceptions=True)

    return work


def test_each_answer_belongs_to_its_request_and_batches_fill():
    sizes = []
    assert with_batcher(submit_all(range(10)), squares(sizes)) == [number**2 for number in range(10)]
    assert sizes == [4, 4, 2]


def test_a_batch_size_of_one_is_no_batching():
    sizes = []
    assert with_batcher(submit_all(range(3)), squares(sizes), batch_size=1) == [0, 1, 4]
    assert sizes == [1, 1, 1]


def test_one_at_fault_fails_alone():
    answers = with_batcher(submit_all([1, 2, -3, 4]), squares([]))
    assert [answers[index] for index in (0, 1, 3)] == [1, 4, 16]
    assert str(answers[2]) == "-3 is negative"


def test_too_few_results_are_a_fault():
    answers = with_batcher(submit_all([1, 2]), lambda numbers: [])
    assert [str(answer) for answer in answers] == ["1 items gave 0 results"] * 2


def test_who_has_gone_is_not_computed():
    sizes, gate = [], threading.Event()

    async def work(batcher):
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)  # its batch has begun, and waits at the gate
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit(2), 0.01)
        third = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        gate.set()
        return await first, await third

    assert with_batcher(work, squares(sizes, gate), wait_s=0.01) == (1, 9)
    assert sizes == [1, 1]


def test_closing_answers_what_waits_and_takes_nothing_more():
    gate = threading.Event()

    async def work(batcher):
        waiting = [asyncio.create_task(batcher.submit(number)) for number in range(9)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            await batcher.submit(1)
        gate.set()
        await closing
        assert all(task.done() for task in waiting)
        return [task.result() for task in waiting]

    assert with_batcher(work, squares([], gate)) == [number**2 for number in range(9)]


def test_other_work_has_the_same_thread():
    async def work(batcher):
        return await batcher.run_between(threading.get_ident), await batcher.submit(0)

    other, own = with_batcher(work, lambda items: [threading.get_ident() for _ in items])
    assert other == own != threading.get_ident()
