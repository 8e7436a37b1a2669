"""The last events, numbered, for whoever asks and whoever waits."""

from __future__ import annotations

import asyncio

import pytest

from dunnage.api.forward_pb2 import Envelope
from dunnage.worker import event_log
from dunnage.worker.event_log import EventLog


def topics(events: list[event_log.NumberedEvent]) -> list[str]:
    return [event.envelope.topic for event in events]


def test_events_are_numbered_and_those_after_a_number_are_given() -> None:
    async def scenario() -> None:
        log = EventLog()
        for topic in ("/a", "/b", "/c"):
            log.add(Envelope(topic=topic))
        every = await log.after(0, 0)
        assert topics(every) == ["/a", "/b", "/c"]
        assert [event.sequence - every[0].sequence for event in every] == [0, 1, 2]
        assert topics(await log.after(every[1].sequence, 0)) == ["/c"]
        assert await log.after(every[2].sequence, 0) == []

    asyncio.run(scenario())


def test_who_waits_is_woken_by_the_first_event() -> None:
    async def scenario() -> None:
        log = EventLog()
        waiting = [asyncio.create_task(log.after(0, 60)) for _ in range(2)]
        await asyncio.sleep(0)
        log.add(Envelope(topic="/a"))
        assert [topics(events) for events in await asyncio.gather(*waiting)] == [["/a"], ["/a"]]

    asyncio.run(scenario())


def test_a_wait_ends_at_its_time() -> None:
    async def scenario() -> None:
        log = EventLog()
        assert await log.after(0, 0.001) == []
        assert await log.after(0, 0) == []
        assert await log.after(0, -1) == []

    asyncio.run(scenario())


def test_only_the_last_events_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(event_log, "KEPT", 3)
        log = EventLog()
        for number in range(5):
            log.add(Envelope(topic=f"/{number}"))
        assert topics(await log.after(0, 0)) == ["/2", "/3", "/4"]

    asyncio.run(scenario())


def test_the_numbers_of_a_later_worker_are_greater() -> None:
    async def scenario() -> None:
        first = EventLog()
        for _ in range(100):
            first.add(Envelope(topic="/a"))
        later = EventLog()
        later.add(Envelope(topic="/b"))
        assert topics(await later.after((await first.after(0, 0))[-1].sequence, 0)) == ["/b"]

    asyncio.run(scenario())
