"""What a case says of an answer: it is equal, it holds, it is refused with this text and the code that goes with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from dunnage.ttrpc.errors import Code, RpcError

LIMIT_S = 20.0
"""How long an answer, an event or a byte is waited for."""
LOOK_AGAIN_S: Final = 0.01
ZERO_TIME_S: Final = -62135596800
"""The first of January of the year 1, which is how Go says that there is no time."""

_CLASSES: Final = {
    "not found": Code.NOT_FOUND,
    "already exists": Code.ALREADY_EXISTS,
    "failed precondition": Code.FAILED_PRECONDITION,
    "invalid argument": Code.INVALID_ARGUMENT,
    "not implemented": Code.UNIMPLEMENTED,
    "unavailable": Code.UNAVAILABLE,
}


class Failed(AssertionError):
    """The shim's answer is not the one that the case asks for."""


def that(holds: object, fact: str) -> None:
    if not holds:
        raise Failed(f"it does not hold that {fact}")


def equal(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise Failed(f"{what} is {got!r}, not {wanted!r}")


def contains(what: str, got: str | bytes, part: str | bytes) -> None:
    if part not in got:  # type: ignore[operator]  # both of one kind, as the caller wrote them
        raise Failed(f"{what} is {got!r}, without {part!r}")


async def refused(call: Awaitable[Any], text: str, *codes: Code) -> RpcError:
    """The call's error: `text` exactly, or its beginning where that ends in an ellipsis; the code is
    that of its class, or one of `codes`."""
    try:
        answer = await call
    except RpcError as error:
        beginning = text.removesuffix("…")
        fits = error.message.startswith(beginning) if text.endswith("…") else error.message == text
        if not fits:
            raise Failed(f"the error is {error.message!r}, not {text!r}") from error
        wanted = codes or (code_of(error.message),)
        if error.code not in wanted:
            named = " or ".join(code.name for code in wanted)
            raise Failed(f"the code of {error.message!r} is {error.code!r}, not {named}") from error
        return error
    raise Failed(f"the answer is {str(answer).strip()!r}, not the error {text!r}")


def code_of(text: str) -> Code:
    """The class of an error is the end of its text; what has none is Unknown."""
    return _CLASSES.get(text.rpartition(": ")[2], Code.UNKNOWN)


def limit(given_s: float | None = None) -> float:
    return LIMIT_S if given_s is None else given_s


async def wait_until(holds: Callable[[], object], fact: str, limit_s: float | None = None) -> None:
    """For what tells nobody when it changes: processes, mounts and files of others."""
    limit_s = limit(limit_s)
    give_up = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > give_up:
            raise Failed(f"within {limit_s:g} s it does not come to hold that {fact}")
        await asyncio.sleep(LOOK_AGAIN_S)


async def comes_to(what: str, ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """For an answer that follows what the kernel and the runtime do in their own time."""
    give_up = time.monotonic() + limit()
    while (got := await ask()) != wanted:
        if time.monotonic() > give_up:
            raise Failed(f"{what} does not come to be {wanted!r} within {limit():g} s, and is {got!r}")
        await asyncio.sleep(LOOK_AGAIN_S)
