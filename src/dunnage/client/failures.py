"""What the worker keeps of a container's failures in its bundle: the stories behind what a client was told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dunnage import errors

FILE = "dunnage-failures.json"
HINT = "hint: "
"""What the note of an error begins with that says what to do."""


def read_failures(bundle: Path) -> list[dict[str, Any]]:
    """Every story that the bundle has, the last failure last; none where nothing failed, or it cannot be read."""
    try:
        kept = json.loads((bundle / FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return [story for story in kept if isinstance(story, dict)] if isinstance(kept, list) else []


def explain(bundle: Path, error: errors.Error) -> None:
    """Add what the worker knows of this failure to the error, as notes: the hint first, where there is one."""
    for story in reversed(read_failures(bundle)):
        sentence = story.get("error")
        if isinstance(sentence, str) and sentence and str(error).startswith(sentence.removesuffix("…")):
            for note in _notes(story):
                error.add_note(note)
            return


def explaining(bundle: Path) -> partial[None]:
    return partial(explain, bundle)


def _notes(story: Mapping[str, Any]) -> Iterator[str]:
    if story.get("hint"):
        yield f"{HINT}{story['hint']}"
    yield f"step: {story.get('step')}"
    if story.get("command"):
        status = story.get("exit_status")
        ended = "it did not end in order" if status is None else f"exit status {status}"
        yield f"command: {shlex.join(story['command'])}: {ended}"
    for record in story.get("records") or ():
        yield f"the runtime logged {record.get('level')}: {record.get('msg')}"
    for line in str(story.get("output") or "").splitlines():
        yield f"the runtime wrote: {line}"
