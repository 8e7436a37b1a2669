"""A group: who is there, who is still to come, and when it may close."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from dunnage.container.container import Container
from dunnage.container.group import Group
from dunnage.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable

CONTAINER = cast(Container, object())  # a group only keeps it


@pytest.fixture
def group() -> Group:
    return Group("default", "pod", "unix:///run/s")


def test_an_unknown_container_is_not_created(group: Group) -> None:
    with pytest.raises(NotFound, match=r"^container not created$"):
        group.container("c1")


def test_a_group_is_empty_when_nobody_is_there_or_to_come(group: Group) -> None:
    assert group.is_empty
    group.announce("c1", 10)
    assert not group.is_empty
    group.begin_create("c1")
    assert not group.is_empty
    group.end_create("c1", CONTAINER)
    assert not group.is_empty
    assert group.container("c1") is CONTAINER
    del group.containers["c1"]
    assert group.is_empty


def test_a_failed_create_leaves_nothing(group: Group) -> None:
    group.announce("c1", 10)
    group.begin_create("c1")
    group.end_create("c1", None)
    assert group.is_empty
    group.begin_create("c1")


def test_an_id_is_created_once(group: Group) -> None:
    group.begin_create("c1")
    with pytest.raises(AlreadyExists, match=r"^container c1$"):
        group.begin_create("c1")
    group.end_create("c1", CONTAINER)
    with pytest.raises(AlreadyExists, match=r"^container c1$"):
        group.begin_create("c1")


def test_a_refused_create_does_not_take_up_the_announcement_of_another(group: Group) -> None:
    group.begin_create("c1")
    group.announce("c1", 10)
    with pytest.raises(AlreadyExists):
        group.begin_create("c1")
    assert list(group.expire(10)) == ["c1"]


def test_announcements_expire_at_their_time(group: Group) -> None:
    group.announce("c1", 10)
    group.announce("c2", 20)
    assert list(group.expire(9.9)) == []
    assert list(group.expire(10)) == ["c1"]
    assert not group.is_empty
    group.withdraw("c2")
    group.withdraw("never announced")
    assert list(group.expire(1000)) == []
    assert group.is_empty


def test_a_second_start_renews_the_announcement(group: Group) -> None:
    group.announce("c1", 10)
    group.announce("c1", 20)
    assert list(group.expire(15)) == []
    assert list(group.expire(20)) == ["c1"]


def test_a_create_can_be_waited_for(group: Group) -> None:
    async def scenario() -> None:
        await group.wait_created("c1")
        group.begin_create("c1")
        waiting = asyncio.create_task(group.wait_created("c1"))
        await asyncio.sleep(0)
        assert not waiting.done()
        group.end_create("c1", CONTAINER)
        await waiting
        await group.wait_created("c1")

    asyncio.run(scenario())


def test_nothing_is_created_in_a_group_that_has_ended(group: Group) -> None:
    group.close()
    with pytest.raises(Unavailable, match=r"^group pod has ended$"):
        group.begin_create("c1")
    assert group.is_empty


def test_a_container_is_being_taken_up_until_it_is_there_or_not(group: Group) -> None:
    group.begin_create("c0")
    assert not group.is_taking_up("c0")
    for container_id, found in (("c1", CONTAINER), ("c2", None)):
        group.begin_take_up(container_id)
        assert group.is_taking_up(container_id)
        group.end_create(container_id, found)
        assert not group.is_taking_up(container_id)


def test_a_lost_container_is_refused_and_keeps_its_group(group: Group) -> None:
    group.begin_take_up("c1")
    group.lose("c1", "its record is torn")
    assert not group.is_taking_up("c1")
    assert not group.is_empty
    for ask in (group.container, group.begin_create):
        with pytest.raises(FailedPrecondition, match=r"^container c1 cannot be taken up: its record is torn$"):
            ask("c1")
    del group.lost["c1"]
    assert group.is_empty
