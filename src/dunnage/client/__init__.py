"""Containers from Python, without containerd: the same worker that containerd would use, spoken to over ttrpc.

    async with Node() as node:
        finished = await node.run(Settings(args=["python3", "-c", "print(6*7)"]))
        assert finished.stdout == b"42\\n"

        web = await node.create(Settings(args=["sleep", "60"]), id="web", detached=True)
        await web.start()
        shell = await web.exec(["uname", "-r"], stdio=Stdio(stdout=PIPE))
        await shell.start()
        print(await shell.wait_output())
        await web.remove(force=True)

Every failure is a class of `dunnage.errors`. `dunnage.client.sync` has the same without `await`. Root is needed: what a
container on the host's root can read is what root can read.
"""

from dunnage.client.bundle import DEFAULT_NAMESPACE, DEFAULT_STATE, LOCAL_KEY, Record
from dunnage.client.container import Container, Process, own_stdio, pipes
from dunnage.client.listing import NodeStatus, WorkerProcess
from dunnage.client.node import Node
from dunnage.client.settings import Settings
from dunnage.client.stats import Stats
from dunnage.client.stdio import OPEN, PIPE, Stdio
from dunnage.client.terminal import RawTerminal, SizeWatch, terminal_size
from dunnage.client.values import Event, Exit, Finished, Listed, State, Status
from dunnage.spec import UNLIMITED, Resources

__all__ = [
    "DEFAULT_NAMESPACE",
    "DEFAULT_STATE",
    "LOCAL_KEY",
    "OPEN",
    "PIPE",
    "UNLIMITED",
    "Container",
    "Event",
    "Exit",
    "Finished",
    "Listed",
    "Node",
    "NodeStatus",
    "Process",
    "RawTerminal",
    "Record",
    "Resources",
    "Settings",
    "SizeWatch",
    "State",
    "Stats",
    "Status",
    "Stdio",
    "WorkerProcess",
    "own_stdio",
    "pipes",
    "terminal_size",
]
