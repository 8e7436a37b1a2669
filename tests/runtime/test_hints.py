"""What runc 1.1.5, crun 1.8.1, the kernel and our own rooms were seen to say, and what we add to it."""

from __future__ import annotations

import pytest

from dunnage.runtime.hints import HINTS, hint_for

START = "runc create failed: unable to start container process: "
INIT = f"{START}error during container init: "
SAID = [
    (
        "OCI runtime create failed: unable to retrieve OCI runtime error (open /b/log.json: no such file or directory)"
        ': exec: "no-runc": executable file not found in $PATH',
        "the OCI runtime no-runc is in no directory of the PATH",
    ),
    ('exec: "no-runc": executable file not found in $PATH', "the OCI runtime no-runc is in no directory"),
    ("fork/exec /x/runc: no such file or directory", "there is no OCI runtime /x/runc"),
    ("fork/exec /x/runc: permission denied", "the OCI runtime /x/runc is not executable"),
    ("fork/exec /x/runc: exec format error", "the OCI runtime /x/runc is no program of this machine"),
    ("runc create failed: container with given ID already exists", "the runtime has a container of this id still"),
    ("container `c1` already exists", "the runtime has a container of this id still"),
    ("runc start of container c1 did not end within 120 s", "a process hangs"),
    ("/x/wrapper did not terminate successfully: exit status 137", "the runtime was killed"),
    (
        f'{START}exec: "nope": executable file not found in $PATH',
        "nope is in no directory of the PATH that the process",
    ),
    ("executable file `nope` not found in $PATH: No such file or directory", "nope is not in the container"),
    ("executable file `/nope` not found in $PATH: No such file or directory", "/nope is not in the container"),
    (f'{START}exec: "/nope": stat /nope: no such file or directory', "the container's root has no /nope"),
    ("exec /bin/script: no such file or directory", "/bin/script is there, and what runs it is not"),
    ("exec container process `/bin/script`: No such file or directory", "/bin/script is there, and what runs it"),
    ("exec /bin/bad: exec format error", "the command is no program of this machine"),
    ("exec: Exec format error", "the command is no program of this machine"),
    ("exec container process `/bin/bad`: Exec format error", "the command is no program of this machine"),
    (f'{START}exec: "/bin/noexec": permission denied', "/bin/noexec is a directory, or not executable"),
    ("open executable: Permission denied", "the command is a directory, or not executable"),
    ("open executable: Operation not permitted", "the command is a directory, or not executable"),
    (
        f'{INIT}chdir to cwd ("/none") set in config.json failed: permission denied',
        "the container has no directory /none",
    ),
    ("chdir to `/none`: Permission denied", "the container has no directory /none"),
    (
        "runc create failed: systemd not running on this host, cannot use systemd cgroups manager",
        "the option SystemdCgroup has systemd make the cgroup",
    ),
    ("unknown version specified", "the spec is of an OCI version that this crun does not know"),
    ("cannot open sd-bus: No such file or directory", "the option SystemdCgroup has systemd make the cgroup"),
    (
        'runc create failed: expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
        'got "/c1" instead',
        "the option SystemdCgroup is set, and whoever made the spec",
    ),
    ("cannot set up controller hugetlb", "crun wants the controller hugetlb of cgroup v1"),
    (
        f"{INIT}error setting cgroup config for procHooks process: unable to set memory limit to 1 (current usage: 9)",
        "the memory limit is below what the runtime itself needs",
    ),
    (
        "OOM: the memory limit could be too low: read from sync socket: Connection reset by peer",
        "the memory limit is below what the runtime itself needs",
    ),
    (
        "writing file `/sys/fs/cgroup/cpuset/t-o9/cgroup.procs`: No space left on device",
        "a cpuset of cgroup v1 has no processors",
    ),
    (f"{INIT}mkdir /sys/fs/cgroup/memory/c1: read-only file system", "the cgroups are mounted read-only here"),
    ("rmdir /sys/fs/cgroup/pids/c1: device or resource busy", "the cgroup has processes"),
    (
        f"{INIT}unable to apply apparmor profile: apparmor failed to apply profile: "
        "write /proc/self/attr/exec: invalid argument",
        "the spec's apparmorProfile is not loaded",
    ),
    ("AppArmor is not initialized correctly", "the spec's apparmorProfile is not loaded"),
    (
        "runc create failed: selinux label is specified in config, but selinux is disabled or not supported",
        "the spec has an SELinux label",
    ),
    ("write to `/proc/self/attr/keycreate`: Invalid argument", "the spec has an SELinux label"),
    ("runc create failed: string SCMP_ACT_NOPE is not a valid action for seccomp", "the spec's seccomp filter"),
    ("invalid seccomp action `SCMP_ACT_NOPE`", "the spec's seccomp filter"),
    ("bundle /b cannot be written: No space left on device", "a file system is full"),
    (
        "runc create failed: unable to create new parent process: unable to create log pipe: "
        "pipe2: too many open files",
        "a limit of open files is reached",
    ),
    ("fork/exec /proc/self/exe: resource temporarily unavailable", "no further process can be made"),
    ("clone: Cannot allocate memory", "memory is short"),
    (f"{INIT}pivot_root .: invalid argument", "the root is one that cannot be pivoted"),
    (
        f'{INIT}error mounting "/tmp" to rootfs at "/q/y": mkdir /ro/q: read-only file system',
        "a mount's target is missing in the container's root, which is read-only",
    ),
    (
        f'{INIT}error mounting "/tmp" to rootfs at "/bin/sh": mount /tmp:/bin/sh (via /proc/self/fd/6), '
        "flags: 0x1000: not a directory",
        "one of a mount's source and target is a directory",
    ),
    ("mount `/tmp` to `bin/sh`: Not a directory", "one of a mount's source and target is a directory"),
    (
        f'{INIT}error mounting "/nonesuch" to rootfs at "/x/y": stat /nonesuch: no such file or directory',
        "this machine has no /nonesuch to be mounted",
    ),
    ("error stat'ing file `/nonesuch`: No such file or directory", "this machine has no /nonesuch to be mounted"),
]


@pytest.mark.parametrize(("said", "hint"), SAID)
def test_what_is_said_has_its_hint(said: str, hint: str) -> None:
    assert hint_for([said]).startswith(hint)


def test_every_hint_is_somebody_s() -> None:
    used = {hint for hint in HINTS for said, _ in SAID if hint.pattern.search(said)}
    assert used == set(HINTS)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "opening file `hugetlb.3MB.limit_in_bytes` for writing: No such file or directory",
        "runc create failed: something new",
        "OCI runtime start failed: cannot start an already running container",
        "failed to retrieve console master: no terminal came from the runtime within 30 s",
    ],
)
def test_what_nobody_knows_has_none(said: str) -> None:
    assert hint_for([said]) == ""


def test_the_first_words_that_mean_something_count() -> None:
    texts = ["OCI runtime create failed: x", "invalid seccomp action", "too many open files"]
    assert "seccomp" in hint_for(texts)
