"""What a trial's process and its workers tell each other."""

from __future__ import annotations

import asyncio

from study.desk import Broken, Desk, Ended


async def worker(desk: Desk, rank: int, pieces: int) -> list[str]:
    """Does pieces of work of up to three reports each."""
    done, reports = list[str](), 0
    for number in range(1, pieces + 1):
        (work,) = await desk.work(number)
        for step in range(3):
            reports += 1
            if not await desk.report(rank, reports, f"{work} {step}"):
                break
            done.append(f"{work} {step}")
        await desk.end(rank, f"{work} of {rank}")
    return done


def test_work_is_done_by_all_and_reported_by_the_first() -> None:
    async def conversation() -> None:
        desk = Desk(2)
        workers = [asyncio.create_task(worker(desk, rank, 2)) for rank in (1, 0)]
        await desk.begin(["a"])
        for step in range(3):
            assert await desk.news() == f"a {step}"
            await desk.answer(True)
        assert await desk.news() == Ended("a of 0")
        await desk.begin(["b"])
        assert await desk.news() == "b 0"
        await desk.answer(False)
        assert await desk.news() == Ended("b of 0")
        assert await asyncio.gather(*workers) == [["a 0", "a 1", "a 2"]] * 2

    asyncio.run(asyncio.wait_for(conversation(), 10))


def test_who_waits_for_news_hears_that_the_group_is_gone() -> None:
    async def conversation() -> None:
        desk = Desk(2)
        await desk.begin(["a"])
        waiting = asyncio.create_task(desk.news())
        await desk.end(1, None)  # one of two
        await asyncio.sleep(0)
        assert not waiting.done()
        await desk.breaks()
        assert isinstance(await waiting, Broken)

    asyncio.run(asyncio.wait_for(conversation(), 10))
