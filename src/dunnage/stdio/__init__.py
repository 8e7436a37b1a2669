"""A process's stdio: what the request means (`plan`), and the streams themselves (`ProcessIO`).

Bytes go through the kernel from one descriptor to another and are not held here (`pump` names the exception); whoever
asked for the streams owns the `ProcessIO` and closes it.
"""

from dunnage.stdio.budget import PipeBudget
from dunnage.stdio.driver import Drivers, LogDriver
from dunnage.stdio.fifo import NotOpened
from dunnage.stdio.plan import Kind, Plan, plan
from dunnage.stdio.process import CLIENT_ENDS, Keep, ProcessIO

__all__ = [
    "CLIENT_ENDS",
    "Drivers",
    "Keep",
    "Kind",
    "LogDriver",
    "NotOpened",
    "PipeBudget",
    "Plan",
    "ProcessIO",
    "plan",
]
