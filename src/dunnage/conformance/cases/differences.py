"""Differences that show in several cases."""

from __future__ import annotations

from typing import Final

from dunnage.conformance.case import Difference

PLAIN_ERROR: Final = Difference(
    "go *",
    "CloseIO hands the error on without its code, which is then Unknown",
    "the case",
    "containerd pull request 4860 made it NotFound for the calls that had the same fault",
)
GROUP_SOCKET: Final = Difference(
    "go 2.*",
    "a group's socket stays when its shim goes: what it removes is the socket of its first container's id",
    "the case",
    "containerd issues 5173 and 10192: no socket is to stay; pull request 10193 thought of the id alone",
)
STARTED_TWICE: Final = Difference(
    "go 2.*",
    "a Start of an exec that runs is refused and counted all the same; when the init ends the shim panics over a count "
    "of -1 (makechan: size out of range)",
    "the case",
    "containerd pull request 10651, which counts execs in Start; the shims before it do as the case asks",
)
OPTIONS_TYPE: Final = Difference(
    "go *",
    "the shim panics, and with it all of its containers lose their shim",
    "the case",
    "containerd pull request 8393 ended the same panic for Checkpoint; nerdbox pull request 225 refuses",
)
