"""What a trial's process and its workers tell each other."""

from __future__ import annotations

import asyncio

from study.desk import Broken, Desk, Ended


async def worker(desk: Desk, rank: int, pieces: int) -> list[str]:
    """Does pieces of work of up to three reports each."""
    done = list[str]()
    for number in range(1, pieces + 1):
        (work,) = await desk.work(number)
        for step in range(3):
            if not await desk.report(rank, step + 1, f"{work} {step}"):
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


def test_a_rank_that_was_stopped_reports_before_another_takes_part_in_the_next_work() -> None:
    """As one that tells again what a checkpoint has, which nothing keeps in step."""

    async def conversation() -> None:
        desk = Desk(2)
        await desk.begin(["a"])
        for number in (1, 2):
            first = asyncio.create_task(desk.report(0, number, f"a {number}"))
            assert await desk.news() == f"a {number}"
            await desk.answer(number == 1)
        assert await first is False
        assert await desk.report(1, 1, "late") is False
        await desk.end(0, None)
        await desk.end(1, None)
        assert await desk.news() == Ended(None)
        await desk.begin(["b"])
        reports = [asyncio.create_task(desk.report(rank, 1, "b 1")) for rank in (1, 0)]
        assert await desk.news() == "b 1"
        assert not any(report.done() for report in reports)
        await desk.answer(True)
        assert await asyncio.gather(*reports) == [True, True]

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
