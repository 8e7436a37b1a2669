"""The whole story of a failure: its client is told one sentence, the log and ``dunnage inspect`` have everything.

The step that failed, the runtime's call with all that it logged and wrote, and a hint where we know one; never an
environment. The last few of a container are in its bundle, in a file of their own that is written whole or not at all,
before the client is told; it goes with the container, but stays when a Create has failed, for whoever removes the
bundle.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from dunnage.container.bundle import Bundle
from dunnage.errors import AlreadyExists, Error, NotFound
from dunnage.runtime import failures
from dunnage.runtime.failures import CommandFailed
from dunnage.runtime.hints import hint_for

KEPT = 16
"""So many stories of a container, the last ones, are kept."""
RECORDS = 64
HINTING_RECORDS, HINTING_CHARACTERS = 8, 1024
"""As much is searched for what has a hint: a worker has other things to do."""
TEXT_CHARACTERS = 4096
"""More of a text is cut: of what was written its beginning, of all else its end."""

STEPS: tuple[tuple[str, str], ...] = (
    (r"failed to mount rootfs component", "mounting the rootfs"),
    (r"failed rootfs umount", "unmounting the rootfs"),
    (r"failed to create OCI runtime console socket|failed to (retrieve console master|start console copy)", "terminal"),
    (r"failed to (create (init|exec) process I/O|open stdin fifo|start io pipe copy)", "stdio"),
    (r"failed to retrieve OCI runtime (container|exec) pid", "pid file"),
    (r"\S*/config\.json (cannot be read|is not)", "config.json"),
    (r"bundle \S+ cannot be written", "bundle"),
)
"""What the sentences of failures begin with, which are containerd's, and which step that is."""


@dataclass(frozen=True)
class Story:
    """One failure. ``call`` is what was asked for, ``at`` the time in nanoseconds since the epoch.

    What follows ``hint`` is of the runtime's call, where one failed; ``exit_status`` is an exit code, or 128 + a
    signal's number, None for a call that could not be run or did not end.
    """

    at: int
    call: str
    exec_id: str
    error: str
    step: str
    hint: str = ""
    command: tuple[str, ...] = ()
    exit_status: int | None = None
    records: tuple[tuple[str, str], ...] = ()
    output: str = ""


def tell(call: str, exec_id: str, error: BaseException, at: int) -> Story | None:
    """The story of a failure. None: it is a refusal, or an answer that clients ask for, and there is no more to it."""
    if isinstance(error, NotFound | AlreadyExists):
        return None
    failure = _command_failed(error)
    sentence = str(error)
    step = next((step for pattern, step in STEPS if re.match(pattern, sentence)), "")
    if failure is None:
        return (
            Story(at, call, exec_id, _end(sentence), step, hint_for([sentence[:HINTING_CHARACTERS]])) if step else None
        )
    records = failures.records(failure.log)
    # what went before the last error, which is the sentence's, may explain it
    said = [sentence, *(record.message for record in reversed(records[-HINTING_RECORDS:])), failure.output]
    hint = hint_for(text[:HINTING_CHARACTERS] for text in said)
    return Story(
        at,
        call,
        exec_id,
        _end(sentence),
        step or f"runtime {failure.call.verb}",
        hint,
        tuple(_end(word) for word in failure.call.argv),
        failure.call.status,
        tuple((level, _end(message)) for level, message in records[-RECORDS:]),
        failure.output[-TEXT_CHARACTERS:].strip(),
    )


def lines(story: Story) -> Iterator[str]:
    """The story as lines for a log: one, and what it does not say already."""
    what = f"{story.call} of exec {story.exec_id}" if story.exec_id else story.call
    said = f"{what} failed at {story.step}: {story.error}"
    if story.hint:
        said += f"; hint: {story.hint}"
    if story.command:
        ended = "did not end in order" if story.exit_status is None else f"exit status {story.exit_status}"
        said += f"; {shlex.join(story.command)}: {ended}"
    yield said
    for level, message in story.records:
        if message not in story.error:
            yield f"the runtime logged{' ' if level else ''}{level}: {message}"
    for line in story.output.splitlines():
        if (
            line.strip()
            and line.strip() not in story.error
            and all(line.strip() not in text for _, text in story.records)
        ):
            yield f"the runtime wrote: {line}"


def note(bundle: Bundle, log: logging.Logger, call: str, exec_id: str, error: BaseException) -> None:
    """Log a failure's story, and add it to those that the bundle keeps."""
    story = tell(call, exec_id, error, time.time_ns())
    if story is None:
        return
    for line in lines(story):
        log.warning("%s", line)
    try:
        bundle.save_failures([*bundle.read_failures()[1 - KEPT :], to_json(story)])
    except OSError as failed:
        log.warning("bundle %s does not keep the story of a failure: %s", bundle.path, failed)


def to_json(story: Story) -> dict[str, Any]:
    """As ``dunnage inspect`` shows it."""
    records = [{"level": level, "msg": message} for level, message in story.records]
    return {**asdict(story), "command": list(story.command), "records": records}


def _command_failed(error: BaseException | None) -> CommandFailed | None:
    while error is not None and not isinstance(error, CommandFailed):
        error = error.__cause__ if isinstance(error, Error) else None
    return error


def _end(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"
