"""`ctr run -t`, `ctr task exec -t` and `ctr task attach` on a real pty, as a person would use them."""

from __future__ import annotations

import itertools

import pytest
from tests.containerd.harness import Containerd, Terminal, wait_until

pytestmark = pytest.mark.real

WAIT_FOR_SIZE = b"echo wai''ting; until stty size | grep -q '^44 1..'; do usleep 1000; done; echo re''sized\n"


def shell(containerd: Containerd, container_id: str = "c1", **size: int) -> Terminal:
    arguments = containerd.run_arguments(container_id, "sh", options=["--rm", "-t", "--env", "PS1=ready> "])
    return Terminal(containerd.command(*arguments), **size)


def resize_until_seen(terminal: Terminal) -> None:
    """ctr asks for SIGWINCH some time after the container has begun: until then a change of size is lost on it."""
    terminal.wait_for(rb"waiting\n")
    for columns in itertools.chain(range(100, 200), range(100, 200)):
        terminal.resize(44, columns)
        if terminal.comes(rb"resized\n", 0.1):
            return
    pytest.fail("the resize did not arrive")


def test_a_terminal_has_the_clients_size(containerd: Containerd) -> None:
    with shell(containerd, rows=33, columns=99) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"stty size\n")
        terminal.wait_for(rb"33 99\n")
        terminal.send(b"exit 3\n")
        assert terminal.wait()[0] == 3


def test_a_resize_arrives(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(WAIT_FOR_SIZE)
        resize_until_seen(terminal)
        terminal.send(b"exit\n")
        assert terminal.wait()[0] == 0


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
        assert terminal.wait()[0] == 0


def test_ctrl_c_interrupts_the_command_in_the_container(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        # the inner shell speaks only once it has the terminal: before, an interrupt can fall between two processes
        terminal.send(b"sh -c 'echo be\\gun; exec sleep 1000'\n")
        terminal.wait_for(rb"begun\n")
        terminal.send(b"\x03")
        terminal.wait_for(b"ready> ")
        terminal.send(b"echo status $?; exit 5\n")
        terminal.wait_for(rb"status 130\n")
        assert terminal.wait()[0] == 5


def test_a_lot_of_output_arrives_whole(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.send(b"stty -onlcr; seq 1 50000; echo do''ne\n")
        whole = terminal.wait_for(rb"(?s)\n1\n.*\ndone\n", 60)[0]
        assert whole.split()[:-1] == [b"%d" % number for number in range(1, 50001)]
        terminal.send(b"exit\n")
        assert terminal.wait()[0] == 0


def test_an_exec_may_have_a_terminal_of_its_own(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    argv = containerd.command("task", "exec", "-t", "--exec-id", "e1", "c1", "sh")
    with Terminal(argv, rows=31, columns=91) as terminal:
        terminal.send(b"stty size\n")
        terminal.wait_for(rb"31 91\n")
        terminal.send(WAIT_FOR_SIZE)
        resize_until_seen(terminal)
        terminal.send(b"exit 6\n")
        assert terminal.wait()[0] == 6
    containerd.remove("c1")


def test_attach_takes_up_a_terminal_whose_client_went(containerd: Containerd) -> None:
    with shell(containerd) as terminal:
        terminal.wait_for(b"ready> ")
        terminal.hang_up()
    with Terminal(containerd.command("task", "attach", "c1")) as terminal:
        terminal.send(b"echo still''here; exit 2\n")
        terminal.wait_for(rb"stillhere\n")
        assert terminal.wait()[0] == 2
    wait_until(lambda: containerd.tasks() == {}, "the task is deleted")
    containerd.ctr("container", "rm", "c1")
