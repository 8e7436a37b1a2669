"""The ends of a container's processes: each is written down when it is seen, and told when its time comes.

An exit takes no turn and waits for nobody. Before an exit is told, so is what the kernel has killed for want of memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dunnage.container.bundle import Record
from dunnage.container.cgroup import ContainerCgroup
from dunnage.container.facts import Exited, Fact, OutOfMemory
from dunnage.container.host import Death
from dunnage.container.means import Means
from dunnage.container.ordering import INIT, ExitOrder
from dunnage.container.process import UNKNOWN_STATUS, Init, Process
from dunnage.container.states import State
from dunnage.container.telling import Telling
from dunnage.errors import Error, NotFound

LAST_EXIT_TIMEOUT_S = 2.0  # how long a Delete waits for the end of what the runtime has just killed

KILL = 9


class Exits:
    """One container's. ``find`` gives a process by its id, the init for an empty one."""

    def __init__(self, means: Means, telling: Telling, init: Init, *, find: Callable[[str], Process]) -> None:
        self.order = ExitOrder()
        self.kills_all = True
        """Whether an init that ends may leave others behind, which are then killed."""
        self.kill_untold = False
        """An out-of-memory kill is told with the start that is under way, or with an exit before that."""
        self._looks = False
        """A kill that is seen now is told with the exits that are about to be, in one step."""
        self.cgroup = ContainerCgroup(means.name, oom=means.host.oom, on_kill=self._out_of_memory, log=means.log)
        self._means = means
        self._telling = telling
        self._init = init
        self._find = find
        self._tasks: set[asyncio.Task[None]] = set()

    def watch(self, process: Process, pid: int) -> None:
        """Wait for the end of a process that was just made. Raises ProcessLookupError when there is none."""
        process.watch = self._means.host.watch(pid, partial(self._died, process))
        process.pid = pid

    def watch_again(self, process: Process) -> None:
        """As ``watch``, for a process that a former worker made; what it saw of its end is gone on with."""
        if process.has_exited:
            if process.stdio is not None:
                process.stdio.exited()
            if process.id in self.order.waiting:
                self._died(process, Death(process.status, process.exited_at or time.time_ns()))
        elif process.pid:
            try:
                self.watch(process, process.pid)
            except ProcessLookupError:
                self._means.log.error("process %d ended and its exit status is not known", process.pid)
                self._died(process, Death(UNKNOWN_STATUS, time.time_ns()))

    def tell(self, process_ids: Sequence[str]) -> None:
        """Tell the exits that ``order`` says may be told."""
        processes = [self._find(process_id) for process_id in process_ids]
        if processes:
            self._looks = True
            self.cgroup.look()
            self._looks = False
        facts: list[Fact] = []
        if self.kill_untold and (processes or not self.order.is_starting(INIT)):
            self.kill_untold = False
            facts.append(OutOfMemory())
        for process in processes:
            process.finish()
            facts.append(Exited(process.id, process.ended))
        if facts:
            self._telling.publish(*facts)

    async def await_last(self) -> None:
        """The runtime has killed what ran: see it end, so that its exit is told before the deletion."""
        init = self._init
        if init.pid and not init.is_over:
            try:
                await asyncio.wait_for(init.wait(), LAST_EXIT_TIMEOUT_S)
            except TimeoutError:
                self._means.log.error("init process %d of a deleted container did not end", init.pid)

    def record(self) -> Record:
        """What ``restore`` needs, in JSON values."""
        return {
            "kills_all": self.kills_all,
            "untold": list(self.order.waiting),
            "cgroup": self.cgroup.record(),
            "kill_untold": self.kill_untold,
        }

    def restore(self, record: Record) -> None:
        """Before it: ``find`` knows every process."""
        self.kills_all = record["kills_all"]
        self.kill_untold = record["kill_untold"]
        self.cgroup.restore(record["cgroup"])
        for process_id in record["untold"]:
            if self._find(process_id).pid:
                self.order.starting(process_id)
                self.order.started(process_id)

    def _died(self, process: Process, death: Death) -> None:
        """A process was seen dead. When this returns, its end is in the record."""
        process.set_exited(death)
        if process.stdio is not None:
            process.stdio.exited()
        if process is self._init and self._init.state is State.PAUSED:
            self.cgroup.thaw()
        if process is self._init and self.kills_all:
            self.order.init_dying()
            self._telling.save()
            self._in_background(self._end_the_rest())
            return
        may_be_told = self.order.exited(process.id)
        if may_be_told:
            self.tell(may_be_told)
        else:
            self._telling.save()

    async def _end_the_rest(self) -> None:
        """Kill what an init without a pid namespace of its own leaves behind, then let its exit be told."""
        try:
            await self._means.runtime.kill(self._means.id, KILL, all=True)
        except NotFound:
            pass  # nothing was left
        except (Error, OSError) as error:  # OSError: there is no descriptor left to run it with
            self._means.log.warning("failed to kill init's children: %s", error)
        self.tell(self.order.exited(INIT))

    def _out_of_memory(self) -> None:
        if self._looks:
            self.kill_untold = True
        elif self.order.is_starting(INIT):
            self.kill_untold = True
            self._telling.save()
        else:
            self._telling.publish(OutOfMemory())

    def _in_background(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
