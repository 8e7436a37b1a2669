"""The command line is read as Go's flag package reads it."""

from __future__ import annotations

import pytest

from dunnage.worker.flags import FlagError, Flags, parse, require_namespace, runtime_name, usage

SHIM = "/usr/local/bin/containerd-shim-dunnage-v2"


def test_what_containerd_passes_to_start() -> None:
    argv = f"{SHIM} -namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 -debug start"
    assert parse(argv.split()) == Flags(
        namespace="default",
        id="c1",
        address="/run/c.sock",
        publish_binary="/usr/bin/containerd",
        debug=True,
        action="start",
    )


def test_what_containerd_passes_to_delete() -> None:
    argv = [SHIM, "-namespace", "ns", "-address", "/a", "-publish-binary", "", "-id", "c", "-bundle", "/b b", "delete"]
    assert parse(argv) == Flags(namespace="ns", id="c", address="/a", bundle="/b b", action="delete")


@pytest.mark.parametrize("words", [["-id", "c"], ["-id=c"], ["--id", "c"], ["--id=c"], ["-id", "b", "-id=c"]])
def test_a_value_may_be_given_in_every_way_of_go(words: list[str]) -> None:
    assert parse([SHIM, *words]).id == "c"


def test_a_value_is_taken_as_it_is() -> None:
    assert parse([SHIM, "-id", "-debug"]) == Flags(id="-debug")
    assert parse([SHIM, "-id=a=b"]).id == "a=b"
    assert parse([SHIM, "-id="]).id == ""
    assert parse([SHIM, "-id", ""]).id == ""


@pytest.mark.parametrize("word", ["1", "t", "T", "TRUE", "true", "True"])
def test_a_true_boolean(word: str) -> None:
    assert parse([SHIM, f"-debug={word}"]).debug


@pytest.mark.parametrize("word", ["0", "f", "F", "FALSE", "false", "False"])
def test_a_false_boolean(word: str) -> None:
    assert not parse([SHIM, "-debug", f"-debug={word}"]).debug


def test_a_boolean_takes_no_further_argument() -> None:
    assert parse([SHIM, "-debug", "true", "start"]) == Flags(debug=True, action="true")


@pytest.mark.parametrize("words", [["-v"], ["-version"], ["--version"], ["--v=true"]])
def test_version_has_two_names(words: list[str]) -> None:
    assert parse([SHIM, *words]).version


@pytest.mark.parametrize(
    ("words", "action"),
    [
        (["start", "-unknown"], "start"),
        (["--", "-id"], "-id"),
        (["-", "-id"], "-"),
        (["", "-unknown"], ""),
        (["-id", "c", "--"], ""),
        ([], ""),
    ],
)
def test_parsing_stops_at_the_first_argument_that_is_no_flag(words: list[str], action: str) -> None:
    assert parse([SHIM, *words]).action == action


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-nope"], "flag provided but not defined: -nope"),
        (["--nope=1"], "flag provided but not defined: -nope"),
        (["-id"], "flag needs an argument: -id"),
        (["--id"], "flag needs an argument: -id"),
        (["-debug=maybe"], 'invalid boolean value "maybe" for -debug: parse error'),
        (["-debug="], 'invalid boolean value "" for -debug: parse error'),
        (['-debug=a"b'], 'invalid boolean value "a\\"b" for -debug: parse error'),
        (["---id"], "bad flag syntax: ---id"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--=x"], "bad flag syntax: --=x"),
    ],
)
def test_a_bad_flag_is_refused_in_go_s_words_with_status_2(words: list[str], message: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse([SHIM, *words])
    assert str(caught.value) == message
    assert caught.value.status == 2
    assert caught.value.stderr == f"{message}\n{usage(SHIM)}"


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_the_usage_with_status_0(word: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse([SHIM, word])
    assert (caught.value.status, caught.value.stderr) == (0, usage(SHIM))


def test_usage_names_the_program_and_every_flag() -> None:
    text = usage(SHIM)
    assert text.startswith(f"Usage of {SHIM}:\n  -address string\n    \t")
    assert "\n  -v\tprint" in text
    assert "\n  -debug\n    \t" in text


def test_an_empty_namespace_is_refused() -> None:
    require_namespace(Flags(namespace="default"))
    with pytest.raises(FlagError) as caught:
        require_namespace(Flags(id="c"))
    assert caught.value.status == 1
    assert caught.value.stderr == "io.containerd.dunnage.v2: shim namespace cannot be empty"


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("/usr/bin/containerd-shim-dunnage-v2", "io.containerd.dunnage.v2"),
        ("/opt/drop-in/containerd-shim-runc-v2", "io.containerd.runc.v2"),
        ("containerd-shim-runc-v1", "io.containerd.runc.v1"),
        ("/opt/shims/mine", "io.containerd.dunnage.v2"),
        ("containerd-shim-runc-v2.old", "io.containerd.dunnage.v2"),
    ],
)
def test_a_shim_answers_as_the_runtime_that_it_is_called_for(program: str, name: str) -> None:
    assert runtime_name(program) == name
