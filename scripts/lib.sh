# What scripts/test and scripts/demo share: say what is done, install what is missing, make .venv. Sourced by bash, from the root.

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

need_root() {
    [ "$(id -u)" = 0 ] || die "must run as root: containers, mounts and cgroups are made"
}

# install_missing COMMAND=PACKAGE...: from Debian, only what is not there yet (another vendor's containerd or runc is left alone).
install_missing() {
    local pair command package missing=()
    for pair in "$@"; do
        command=${pair%%=*} package=${pair#*=}
        case $command in
            @*) dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package") ;;
            *) command -v "$command" >/dev/null || missing+=("$package") ;;
        esac
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    command -v apt-get >/dev/null || die "not a Debian: please install ${missing[*]} yourself"
    say "installing ${missing[*]}"
    # The packages' services start on their own; everything here uses a containerd of its own.
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null 2>&1 && return 0
    apt-get update -qq </dev/null || die "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
        die "could not install ${missing[*]}"
}

is_new_enough() { "$1" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Debian's own python3 before any other in PATH (a pyenv shim costs 70 ms a start, and may be gone tomorrow); sets PYTHON.
choose_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9] "$(command -v python3 || true)"; do
        if [ -x "$candidate" ] && is_new_enough "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
    die "needs python3, 3.11 or newer"
}

# make_venv [--dev]: .venv with dunnage in it (and the tools of the group dev); nothing to do while pyproject.toml is the same.
make_venv() {
    local stamp
    choose_python
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        install_missing @venv=python3-venv
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || die "$PYTHON cannot make a virtual environment"
    fi
    stamp="$PWD $("$PYTHON" -V) ${1:-} $(sha256sum <pyproject.toml)"
    if [ "$(cat .venv/stamp${1:-} 2>/dev/null)" = "$stamp" ]; then
        return
    fi
    say "making .venv with $PYTHON"
    [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1 || "$PYTHON" -m venv --clear .venv
    # --group needs pip 25.1; Debian 12 has 23.0.
    .venv/bin/python -m pip install -q --disable-pip-version-check 'pip>=25.1'
    if [ "${1:-}" = --dev ]; then
        .venv/bin/python -m pip install -q --disable-pip-version-check -e . --group dev
    else
        .venv/bin/python -m pip install -q --disable-pip-version-check -e .
    fi
    printf %s "$stamp" >.venv/stamp${1:-}
}

# crun 1.8.1 refuses a hybrid host (cgroup v1 controllers and a v2 tree) where hugetlb is mounted as neither.
mount_hugetlb() {
    local root=/sys/fs/cgroup
    [ "$(stat -f -c %T $root)" = tmpfs ] || return 0
    grep -q '^hugetlb' /proc/cgroups || return 0
    grep -qE ' - cgroup .*[ ,]hugetlb(,|$)' /proc/self/mountinfo && return 0
    say "mounting the hugetlb cgroup controller at $root/hugetlb (crun wants it)"
    mkdir -p $root/hugetlb
    mount -t cgroup -o hugetlb hugetlb $root/hugetlb || die "could not mount $root/hugetlb"
}
