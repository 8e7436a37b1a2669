"""What containers use, as people and programs read it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

import click
import pytest
from click.testing import CliRunner

from dunnage import errors
from dunnage.cli import stats as stats_command
from dunnage.cli.checkpoint import restore
from dunnage.cli.memory import say_if_out_of_memory
from dunnage.cli.sizes import size_text
from dunnage.cli.stats import Use, describe, rows_of
from dunnage.cli.update import update
from dunnage.client import Container, Listed, Node, Stats, Status
from dunnage.client.stats import Cpu, Io, Memory, Pids

MIB = 1 << 20


def make_stats(*, total_ns: int = 0, taken_s: float = 0.0, oom_kills: int = 0, limit: int | None = 64 * MIB) -> Stats:
    memory = Memory(10 * MIB, 6 * MIB, limit, 12 * MIB, 0, oom_kills)
    cpu = Cpu(total_ns, total_ns, 0, 0, 0, 0)
    return Stats(1, memory, cpu, Pids(5, None), Io(1536, 0, 3, 0), taken_s, {"pids": {"current": 5}})


def listed(id: str, status: Status = Status.RUNNING, namespace: str = "default", key: str = "local") -> Listed:
    return Listed(key, namespace, id, status, 7, None, Path("/b"))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1023, "0.999 KiB"),
        (64 * MIB, "64 MiB"),
        (3 << 29, "1.5 GiB"),
        (123456789, "118 MiB"),
        (1 << 63, "8.19e+03 PiB"),
    ],
)
def test_a_size_has_three_digits_and_its_unit(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_row_has_a_dash_for_what_nobody_knows() -> None:
    uses = [Use(listed("web"), make_stats(), 1.5), Use(listed("free"), make_stats(limit=None), None)]
    assert rows_of([*uses, Use(listed("gone", Status.STOPPED), None, None)]) == [
        ("web", "default", "150.0%", "6 MiB", "64 MiB", "5", "1.5 KiB", "0 B", "local"),
        ("free", "default", "-", "6 MiB", "-", "5", "1.5 KiB", "0 B", "local"),
        ("gone", "default", "-", "-", "-", "-", "-", "-", "local"),
    ]


def test_json_has_every_field() -> None:
    described = json.loads(json.dumps(describe(Use(listed("web"), make_stats(), 0.5))))
    assert (described["id"], described["cpus"], described["cgroup"]) == ("web", 0.5, 1)
    assert described["memory"]["limit_bytes"] == 64 * MIB
    assert described["raw"] == {"pids": {"current": 5}}
    assert describe(Use(listed("gone", Status.STOPPED), None, None))["status"] == "stopped"


class Machine:
    """A node with these containers, which use a processor and a half each."""

    namespace = "default"

    def __init__(self, *containers: Listed) -> None:
        self.found = containers
        self.asked = 0

    async def containers(self, *, keys: object) -> list[Listed]:
        return [one for one in self.found if keys is None or one.key == "local"]

    async def stats(self, one: Listed) -> Stats:
        self.asked += 1
        if one.id == "vanishing":
            raise errors.NotFound("container not created: not found")
        if one.id == "strange":
            raise errors.Internal("memory.stat is not understood")
        return make_stats(total_ns=self.asked * 3_000_000_000, taken_s=self.asked * 2.0)


def test_all_that_are_alive_are_shown_or_those_named() -> None:
    machine = Machine(
        listed("web"),
        listed("ended", Status.STOPPED),
        listed("web", namespace="k8s.io", key="of-a-containerd"),
        listed("vanishing", Status.PAUSED),
        listed("strange"),
        listed("web", namespace="other"),
    )
    node = cast(Node, machine)

    async def look() -> None:
        first = list((await stats_command._look(node, (), {})).values())
        assert [(use.container.id, use.container.namespace, use.stats is None) for use in first] == [
            ("web", "default", False),
            ("web", "k8s.io", False),
            ("vanishing", "default", True),
            ("strange", "default", True),
            ("web", "other", False),
        ]
        uses = await stats_command._look(node, ("web", "ended"), {})
        assert [use.container.id for use in uses.values()] == ["web", "ended"]
        assert [use.cpus for use in uses.values()] == [None, None]
        uses = await stats_command._look(node, ("web", "ended"), uses)
        assert [use.cpus for use in uses.values()] == [1.5, None]
        with pytest.raises(errors.NotFound, match="container nobody does not exist"):
            await stats_command._look(node, ("web", "nobody"), {})
        with pytest.raises(errors.Internal, match=r"memory\.stat"):
            await stats_command._look(node, ("strange",), {})

    asyncio.run(look())


@pytest.mark.parametrize(
    ("stats", "said"),
    [
        (make_stats(), ""),
        (
            make_stats(oom_kills=1),
            "dunnage: container web ran out of memory (limit 64 MiB): the kernel killed one process of it\n",
        ),
        (
            make_stats(oom_kills=2, limit=None),
            "dunnage: container web ran out of memory: the kernel killed 2 processes of it\n",
        ),
        (errors.NotFound("cgroup does not exist"), ""),
    ],
)
def test_who_ran_out_of_memory_is_said(
    stats: Stats | errors.Error, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Web:
        id = "web"

        async def stats(self) -> Stats:
            if isinstance(stats, errors.Error):
                raise stats
            return stats

    asyncio.run(say_if_out_of_memory(cast(Container, Web()), 137))
    assert capsys.readouterr().err == said
    asyncio.run(say_if_out_of_memory(cast(Container, Web()), 1))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (update, ["web"], "no limit to change"),
        (update, ["--cpu-shares", "1", "web"], "2<=x<=262144"),
        (update, ["--memory", "1M"], "Missing argument"),
        (restore, ["-d", "-t", "somewhere"], "has no terminal"),
    ],
)
def test_what_cannot_be_meant_is_said(command: click.Command, arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(command, arguments, obj="default")
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("arguments", [["--pids", "many"], ["--memory", "much"], ["--cpus", "0"]])
def test_a_limit_that_is_none_is_refused_before_anybody_is_asked(arguments: list[str]) -> None:
    result = CliRunner().invoke(update, [*arguments, "web"], obj="default")
    assert isinstance(result.exception, errors.InvalidArgument)
