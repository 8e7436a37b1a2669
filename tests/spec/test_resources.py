"""Limits as the specification has them."""

from __future__ import annotations

import pytest

from dunnage import errors
from dunnage.spec import UNLIMITED, Resources, parse_cpus, parse_limit, parse_memory, parse_pids


def test_what_is_not_said_is_not_there() -> None:
    assert Resources().to_oci() == {}
    assert Resources(pids=7).to_oci() == {"pids": {"limit": 7}}


def test_every_limit_has_its_place() -> None:
    resources = Resources(
        memory_bytes=64 << 20,
        memory_swap_bytes=128 << 20,
        memory_reservation_bytes=32 << 20,
        cpus=1.5,
        cpu_shares=512,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        pids=100,
    )
    assert resources.to_oci() == {
        "memory": {"limit": 67108864, "swap": 134217728, "reservation": 33554432},
        "cpu": {"shares": 512, "quota": 150000, "period": 100000, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 100},
    }


def test_a_limit_can_be_taken_away() -> None:
    resources = Resources(memory_bytes=UNLIMITED, memory_swap_bytes=UNLIMITED, cpus=UNLIMITED, pids=UNLIMITED)
    assert resources.to_oci() == {
        "memory": {"limit": -1, "swap": -1},
        "cpu": {"quota": -1, "period": 100000},
        "pids": {"limit": -1},
    }


@pytest.mark.parametrize(
    "resources",
    [
        Resources(memory_bytes=0),
        Resources(memory_bytes=-2),
        Resources(cpus=0.0),
        Resources(cpu_shares=-1),
        Resources(pids=0),
        Resources(memory_bytes=2 << 20, memory_swap_bytes=1 << 20),
    ],
)
def test_what_no_container_can_have_is_refused(resources: Resources) -> None:
    with pytest.raises(errors.InvalidArgument):
        resources.to_oci()


def test_a_limit_that_is_none_has_two_names() -> None:
    assert parse_limit("max", parse_memory) == parse_limit("-1", parse_cpus) == parse_limit("MAX", parse_pids) == -1
    assert (parse_limit("64m", parse_memory), parse_limit("0.5", parse_cpus), parse_limit("9", parse_pids)) == (
        64 << 20,
        0.5,
        9,
    )


@pytest.mark.parametrize("text", ["0", "x", "", "1.5", "-2"])
def test_what_is_no_number_of_processes(text: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not a number of processes"):
        parse_limit(text, parse_pids)
