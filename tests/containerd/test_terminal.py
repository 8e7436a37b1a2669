"""`ctr run -t`, `ctr task exec -t` and `ctr task attach` on a real pty, as a person would use them."""

from __future__ import annotations

import pytest
from tests.containerd.harness import Containerd, Terminal, wait_until

pytestmark = pytest.mark.real


def shell(containerd: Containerd, container_id: str = "c1", **size: int) -> Terminal:
    arguments = containerd.run_arguments(container_id, "sh", options=["--rm", "-t", "--env", "PS1=ready> "])
    return Terminal(containerd.command(*arguments), **size)


def test_a_terminal_has_the_clients_size(containerd: Containerd) -> None:
    with shell(containerd, rows=33, columns=99) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"stty size\n")
        terminal.wait_for(rb"33 99\n")
        terminal.send(b"exit 3\n")
        assert terminal.wait() == 3


def test_a_resize_arrives(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"echo wai''ting; until [ \"$(stty size)\" = '44 123' ]; do usleep 1000; done; echo re''sized\n")
        terminal.wait_for(rb"waiting\n")
        terminal.resize(44, 123)
        terminal.wait_for(rb"resized\n")
        terminal.send(b"exit\n")
        assert terminal.wait() == 0


def test_stty_changes_the_containers_terminal(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"stty -echo; tty; stty -a\n")
        terminal.wait_for(rb"/dev/(console|pts/\d+)\n")
        terminal.wait_for(rb"[^\w]-echo ")
        terminal.wait_for(b"ready> ")
        terminal.send(b"echo un''seen\n")
        assert b"un''seen" not in terminal.wait_for(rb"(?s).*?unseen\n")[0]
        terminal.send(b"exit\n")
        assert terminal.wait() == 0


def test_ctrl_c_interrupts_the_command_in_the_container(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"echo be''gun; sleep 1000\n")
        terminal.wait_for(rb"begun\n")
        terminal.send(b"\x03")
        terminal.wait_for(b"ready> ")
        terminal.send(b"echo status $?; exit 5\n")
        terminal.wait_for(rb"status 130\n")
        assert terminal.wait() == 5


def test_a_lot_of_output_arrives_whole(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"stty -onlcr; seq 1 50000; echo do''ne\n")
        whole = terminal.wait_for(rb"(?s)\n1\n.*\ndone\n", 60)[0]
        assert whole.split()[:-1] == [b"%d" % number for number in range(1, 50001)]
        terminal.send(b"exit\n")
        assert terminal.wait() == 0


def test_what_was_written_before_the_end_is_shown(containerd: Containerd) -> None:
    arguments = containerd.run_arguments("c1", "sh", "-c", "seq 1 20000; exit 4", options=["--rm", "-t"])
    with Terminal(containerd.command(*arguments)) as terminal:
        assert terminal.wait(60) == 4
        assert terminal.seen.split() == [b"%d" % number for number in range(1, 20001)]


def test_an_exec_may_have_a_terminal_of_its_own(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    argv = containerd.command("task", "exec", "-t", "--exec-id", "e1", "c1", "sh")
    with Terminal(argv, rows=31, columns=91) as terminal:
        terminal.send(b"stty size\n")
        terminal.wait_for(rb"31 91\n")
        terminal.resize(21, 71)
        terminal.send(b"until [ \"$(stty size)\" = '21 71' ]; do usleep 1000; done; echo re''sized; exit 6\n")
        terminal.wait_for(rb"resized\n")
        assert terminal.wait() == 6
    containerd.remove("c1")


def test_attach_takes_up_a_terminal_whose_client_went(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.process.kill()
    with Terminal(containerd.command("task", "attach", "c1")) as terminal:
        terminal.send(b"echo still''here; exit 2\n")
        terminal.wait_for(rb"stillhere\n")
        assert terminal.wait() == 2
    wait_until(lambda: containerd.tasks() == {}, "the task is deleted")
    containerd.ctr("container", "rm", "c1")
