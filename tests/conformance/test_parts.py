"""The suite's own parts: cases, differences, marks, addresses, and a run that asks nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dunnage.api import bootstrap_pb2
from dunnage.conformance import programs, reference
from dunnage.conformance.__main__ import chosen, main
from dunnage.conformance.case import Area, Case, Difference
from dunnage.conformance.cases import AREAS, all_cases, exec_states, init_states, states
from dunnage.conformance.check import Failed, code_of, refused
from dunnage.conformance.play import judge, play
from dunnage.conformance.scene import Host, Scene
from dunnage.conformance.shim import Address, Shim
from dunnage.conformance.table import Mark, lines
from dunnage.ttrpc.errors import Code, RpcError

GO = Shim(Path("/shim"), "go", "1.6.20")


async def nothing(scene: Scene) -> None:
    """It asks nothing."""


def differing(*, always: bool = True) -> Case:
    return Case("area", "name", nothing, [Difference("go 1.*", "why", "the case", "source", always)])


def test_a_run_of_no_cases_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shim", "/bin/true", "--case", "no such case"]) == 2
    assert "no case fits" in capsys.readouterr().err


def test_a_run_without_a_shim_fails() -> None:
    assert main([]) == 2


def test_a_shim_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shim", "/no/such/shim", "--case", "wire"]) == 2
    assert "/no/such/shim" in capsys.readouterr().err


def test_the_list_has_every_case_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    titles = capsys.readouterr().out.splitlines()
    assert len(titles) == len(set(titles)) == len(all_cases()) >= 150


def test_every_area_has_at_least_twelve_cases() -> None:
    assert {area.name: len(area.cases) for area in AREAS if len(area.cases) < 12} == {}


def test_at_most_fifteen_differences_are_written_down() -> None:
    assert len({difference for case in all_cases() for difference in case.differences}) <= 15


def test_every_cell_of_the_documented_tables_is_a_case_or_has_a_reason() -> None:
    titles = [case.title for case in all_cases()]
    for section, area, thing, unseen in (
        ("init", "init states", "a container", init_states.UNSEEN),
        ("exec", "exec states", "an exec", exec_states.UNSEEN),
    ):
        for op, row in reference.cells(section).items():
            for state in row:
                beginning = f"{area}: {op} of {thing} that is {state} gives "
                found = sum(title.startswith(beginning) for title in titles)
                assert found == (0 if (op, state) in unseen else 1), beginning


def test_a_documented_table_says_same_for_the_cell_to_the_left() -> None:
    table = reference.cells("init")
    assert table["Pause"]["created (checkpoint)"] == table["Pause"]["created"] == "`cannot pause task in created state`"


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("runc start → running", "→ running"),
        ("→ stopped, then runc resume", "→ stopped 137"),
        ("`cannot start a running process`", "cannot start a running process"),
        ("runc kill", "ok"),
    ],
)
def test_a_documented_cell_is_read_as_a_client_sees_it(cell: str, wanted: str) -> None:
    assert states.read(cell, "running", "gone") == wanted
    assert states.read(cell, "deleted", "gone") == "gone"


def test_a_case_whose_program_is_missing_says_so_and_is_not_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert asyncio.run(programs.missing(["no-such-program"])) == {"no-such-program"}
    case = Case("area", "name", nothing, [], needs="no-such-program")
    outcome = asyncio.run(play(case, unused_host(), ["no-such-program"]))
    assert outcome.mark is Mark.UNPLAYED
    text = "\n".join(lines([case], ["go 1.6.20"], {"go 1.6.20": {case.title: outcome}}))
    assert "–  area: name" in text
    assert "it needs no-such-program" in text


def unused_host() -> Host:
    return Host.__new__(Host)  # never looked at


def test_a_run_that_plays_no_case_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shim = tmp_path / "containerd-shim-x-v2"
    shim.write_text("#!/bin/sh\necho Version: 1\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["--shim", str(shim), "-k", "init states: Checkpoint of a container that is running*"]) == 2
    assert "no case was played" in capsys.readouterr().err


def test_a_pattern_is_of_areas_names_and_titles() -> None:
    assert {case.area for case in chosen(all_cases(), ["wire"])} == {"wire"}
    assert chosen(all_cases(), ["wire: an even*"])


def test_a_case_has_its_name_for_itself() -> None:
    area = Area("area")
    area.add("name", nothing)
    with pytest.raises(ValueError, match="two cases"):
        area.add("name", nothing)


@pytest.mark.parametrize(
    ("failure", "always", "mark"),
    [("it fails", True, Mark.DIFFERS), ("", True, Mark.STALE), ("", False, Mark.PASSED)],
)
def test_a_difference_is_there_or_it_is_stale(failure: str, always: bool, mark: Mark) -> None:
    assert judge(differing(always=always), GO, failure, 0).mark is mark


def test_a_difference_of_another_shim_explains_nothing() -> None:
    assert judge(differing(), Shim(Path("/shim"), "dunnage", "0.1.0"), "it fails", 0).mark is Mark.FAILED


def test_the_table_gives_the_reason_and_the_source() -> None:
    case = differing()
    text = "\n".join(lines([case], ["go 1.6.20"], {"go 1.6.20": {case.title: judge(case, GO, "it fails", 0)}}))
    assert "≠  area: name" in text
    assert "it fails" in text
    assert "why; right: the case (source)" in text


@pytest.mark.parametrize(
    ("said", "address"),
    [
        (b"unix:///run/s\n", Address("unix:///run/s", 2)),
        (b'{"version":3,"address":"unix:///run/s","protocol":"ttrpc"}', Address("unix:///run/s", 3)),
        (
            bootstrap_pb2.BootstrapResult(version=3, address="unix:///run/s", protocol="ttrpc").SerializeToString(),
            Address("unix:///run/s", 3),
        ),
    ],
)
def test_every_way_of_saying_an_address_is_understood(said: bytes, address: Address) -> None:
    assert Address.parse(said) == address


def test_what_is_no_address_is_a_failure() -> None:
    with pytest.raises(Failed):
        Address.parse(b"by the way\nunix:///run/s")


def test_the_code_follows_the_class_at_the_end_of_the_text() -> None:
    assert code_of("container not created: not found") is Code.NOT_FOUND
    assert code_of("cannot start a running process") is Code.UNKNOWN


async def answered() -> str:
    return "yes"


async def failing(code: Code, text: str) -> None:
    raise RpcError(code, text)


def test_refused_takes_the_text_and_its_code_and_nothing_else() -> None:
    asyncio.run(refused(failing(Code.NOT_FOUND, "it: not found"), "it: not found"))
    asyncio.run(refused(failing(Code.UNKNOWN, "it is so"), "it…"))
    for call in (answered(), failing(Code.UNKNOWN, "it: not found"), failing(Code.UNKNOWN, "another")):
        with pytest.raises(Failed):
            asyncio.run(refused(call, "it: not found"))


def test_the_documentation_has_every_difference_and_its_source() -> None:
    text = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    differences = {difference for case in all_cases() for difference in case.differences}
    assert [each for each in differences if each.why not in text or each.source not in text] == []


def test_the_documentation_has_every_area() -> None:
    text = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
    assert [area.name for area in AREAS if f"| {area.name} | " not in text] == []
