"""An error of the worker gets notes from the story that the bundle has of it, and from no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dunnage import errors
from dunnage.client.failures import FILE, explain, read_failures

SENTENCE = "OCI runtime start failed: no"
STORY: dict[str, Any] = {
    "error": SENTENCE,
    "step": "runtime start",
    "hint": "try again",
    "command": ["/usr/bin/runc", "--root", "/r o", "start", "c1"],
    "exit_status": 1,
    "records": [{"level": "error", "msg": "no"}],
    "output": "a\nb",
}


def notes(bundle: Path, error: errors.Error) -> list[str]:
    explain(bundle, error)
    return getattr(error, "__notes__", [])


def test_the_last_story_of_that_sentence_is_told_the_hint_first(tmp_path: Path) -> None:
    kept = [{**STORY, "hint": "old"}, STORY, {**STORY, "error": "another", "hint": "another"}]
    (tmp_path / FILE).write_text(json.dumps(kept))
    assert notes(tmp_path, errors.Error(SENTENCE)) == [
        "hint: try again",
        "step: runtime start",
        "command: /usr/bin/runc --root '/r o' start c1: exit status 1",
        "the runtime logged error: no",
        "the runtime wrote: a",
        "the runtime wrote: b",
    ]
    assert notes(tmp_path, errors.DeadlineExceeded(f"{SENTENCE}: context deadline exceeded"))
    assert notes(tmp_path, errors.Error("something else")) == []


@pytest.mark.parametrize("text", [None, "", "{", "{}", "[1]", '[{"error": 3}]', '[{"error": ""}]', '[{"error": "x"}]'])
def test_what_cannot_be_read_explains_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert notes(tmp_path, errors.Error("y")) == []
    assert all(isinstance(story, dict) for story in read_failures(tmp_path))
