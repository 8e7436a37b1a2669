"""A shim with one thing wrong fails the case about that thing; the same shim with nothing wrong passes it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest
from tests import newer
from tests.conformance import broken

from dunnage.conformance import cases
from dunnage.conformance.case import Case
from dunnage.conformance.play import play
from dunnage.conformance.scene import Host
from dunnage.conformance.shim import Shim
from dunnage.conformance.table import Mark, Outcome

pytestmark = pytest.mark.real

CAUGHT_BY = {
    "start_talks": "binary: start prints an address of a socket and nothing else, on neither stream",
    "start_running_again": ("init states: Start of a container that is running gives 'cannot start a running process'"),
    "kill_has_no_class": ("exec states: Kill of an exec that is stopped gives 'process already finished: not found'"),
    "other_words": "unknown ids: State of a container that nobody created is NotFound",
    "ids_are_shared": "exec ids: of twenty Execs of one id at once one wins and the others hear that it exists",
    "close_io_does_nothing": "stdio: a client that closes stdin does not end it without CloseIO",
    "start_after_exit": "events: a container's life is create, start, exit, delete",
    "exits_twice": "load: twenty execs at once each have one life in order, with the status of their own",
    "short_words": "error texts: a program that is not there fails Create with the runtime's own words",
    "no_stats": "stats: Stats counts the container's processes, those of execs too",
    "memory_without_rss": "stats: the numbers of memory are those of memory.stat, every field that both have",
    "options_are_dropped": "options: no_pivot_root and no_new_keyring are flags of create",
    "log_files_are_dropped": "stdio schemes: file:// of a file that is there keeps what it has",
    "no_oom": "limits: an exec that is killed for its memory shows 137, and the container runs on",
    "checkpoint_does_nothing": "checkpoint: a container that is checkpointed runs on",
    "start_reads_nothing": "start: shim_cgroup of the options on stdin is where the shim is put",
    "empty_is_long": "wire: an answer that is empty is a frame of no bytes",
    "delete_names_another": (
        "crash: delete after a kill of the shim ends a container that was running, and answers its pid and 137"
    ),
}


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It does what the Go shim does, by way of the proxy."""
    source = Path(cases.__file__).parents[3]
    path = tmp_path / "containerd-shim-broken-v2"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} {os.path.abspath(broken.__file__)} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{newer.directory('criu')}:{os.environ['PATH']}")
    monkeypatch.setenv("BROKEN_SHIM", newer.GO_SHIM)
    return path


def case_of(title: str) -> Case:
    (found,) = [case for case in cases.all_cases() if case.title == title]
    return found


def outcome(shim: Path, tmp_path: Path, case: Case) -> Outcome:
    async def once() -> Outcome:
        directory = tmp_path / "host"
        directory.mkdir()
        host = Host(directory, await Shim.at(shim), "runc", logging.getLogger("test"))
        try:
            return await play(case, host)
        finally:
            await host.close()

    return asyncio.run(once())


@pytest.mark.parametrize("mutation", CAUGHT_BY)
def test_every_mutation_is_caught_by_its_case(
    mutation: str, shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", mutation)
    monkeypatch.setattr("dunnage.conformance.check.LIMIT_S", 2.0)  # nothing that is waited for comes
    assert outcome(shim, tmp_path, case_of(CAUGHT_BY[mutation])).mark is Mark.FAILED


@pytest.mark.parametrize("title", CAUGHT_BY.values())
def test_the_same_shim_unbroken_passes_the_case(title: str, shim: Path, tmp_path: Path) -> None:
    result = outcome(shim, tmp_path, case_of(title))
    assert result.mark is Mark.PASSED, result.why


def test_every_area_has_a_mutation() -> None:
    assert {case_of(title).area for title in CAUGHT_BY.values()} == {area.name for area in cases.AREAS}


def test_every_mutation_is_in_the_list() -> None:
    known = {*broken.ANSWERS, *broken.EVENT_MUTATIONS, *broken.REQUESTS, *broken.SWALLOWED, *broken.ACTIONS}
    assert known == set(CAUGHT_BY)


def test_the_documentation_has_every_mutation_with_the_case_that_caught_it() -> None:
    text = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    rows = [f"| {mutation} | {title} |" for mutation, title in CAUGHT_BY.items()]
    assert [row for row in rows if row not in text] == []
