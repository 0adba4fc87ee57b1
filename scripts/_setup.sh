# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: one virtual environment, .venv in the repository root, holding the
# pinned requirements and this package in editable form.
#
# For the callers: ROOT, VENV_PYTHON, prepare, say, cores. PYTHON= in the environment picks the interpreter.
# Every pin has a wheel for Linux (x86_64 and aarch64, glibc 2.28 or newer) and macOS 14 on Apple silicon, for
# Python 3.10 to 3.14: nothing is compiled there, so no compiler is asked for before pip itself misses one.

# The caller's own first lines, for --help; a sourced file has the caller's arguments.
case " $* " in
    *" --help "* | *" -h "*)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
VENV_PYTHON="$VENV/bin/python"
# There while packages are being installed: found at the start, it tells of an installation cut short.
UNFINISHED="$VENV/.unfinished"
# Measured on Linux x86_64, where torch brings the CUDA libraries.
INSTALLED_GB=6
DOWNLOAD_GB=3

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$1"; }

fail() {
    say "error: $1" >&2
    shift
    if [ $# -gt 0 ]; then printf '  %s\n' "$@" >&2; fi
    exit 1
}

# nproc obeys OMP_NUM_THREADS, which is not what is asked here.
cores() { env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1; }

# "3.11" for an interpreter that runs, nothing for one that does not.
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

at_least_3_10() {
    case "$1" in
        3.[0-9]) return 1 ;;
        3.*) return 0 ;;
        *) return 1 ;;
    esac
}

# The newest suitable interpreter on the PATH, for the advice in error messages.
other_python() {
    local name
    for name in python3.14 python3.13 python3.12 python3.11 python3.10; do
        if at_least_3_10 "$(python_version "$name")"; then
            echo "$name"
            return
        fi
    done
}

advise_python() {
    local found
    found="$(other_python)"
    if [ -n "$found" ]; then
        echo "$found is on this machine: PYTHON=$found bash scripts/$(basename "$0")"
    else
        echo "Debian, Ubuntu: apt-get install python3 python3-venv; others: https://www.python.org/downloads/"
        echo "then, if it is not the first python3 on the PATH: PYTHON=/path/to/python3 bash scripts/$(basename "$0")"
    fi
}

check_python() {
    local python="$1" version
    if ! command -v "$python" >/dev/null 2>&1; then
        fail "no Python: '$python' is not a program on this machine; 3.10 or newer is needed" "$(advise_python)"
    fi
    version="$(python_version "$python")"
    if [ -z "$version" ]; then
        fail "'$python' does not run as a Python interpreter; 3.10 or newer is needed" "$(advise_python)"
    fi
    if ! at_least_3_10 "$version"; then
        fail "'$python' is Python $version; 3.10 or newer is needed" "$(advise_python)"
    fi
}

check_venv_module() {
    local python="$1" version
    if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        version="$(python_version "$python")"
        fail "'$python' (Python $version) has no venv or no ensurepip module, so it cannot make $VENV" \
            "Debian, Ubuntu: apt-get install python3-venv  (or python$version-venv)" \
            "others: install the full Python, or name one that has them: PYTHON=/path/to/python3"
    fi
}

kilobytes_used() { if [ -e "$1" ]; then du -sk "$1" 2>/dev/null | cut -f1; else echo 0; fi; }

check_disk() {
    local free used needed
    free="$(df -Pk "$VENV" | awk 'NR == 2 { print $4 }')"
    used="$(kilobytes_used "$VENV")"
    needed=$(((INSTALLED_GB + DOWNLOAD_GB) * 1048576 - used))
    if [ "$free" -lt "$needed" ]; then
        fail "too little disk: $((free / 1048576)) GB free at $ROOT, about $(((needed + 1048575) / 1048576)) GB needed" \
            "$INSTALLED_GB GB stay in .venv (torch with its CUDA libraries is most of it)," \
            "$DOWNLOAD_GB GB of downloads are needed only while they are unpacked"
    fi
}

make_venv() {
    local python="$1"
    check_python "$python"
    check_venv_module "$python"
    if ! mkdir -p "$VENV" 2>/dev/null || ! touch "$UNFINISHED" 2>/dev/null; then
        fail "cannot write to $VENV (as user $(id -un))" "use a copy of the repository in a folder of your own"
    fi
    check_disk
    say "making .venv with Python $(python_version "$python")"
    find "$VENV/" -mindepth 1 ! -name "$(basename "$UNFINISHED")" -delete
    "$python" -m venv "$VENV" || fail "'$python' could not make $VENV (its own message is above)"
}

# Reuse .venv when it is whole and of the interpreter asked for; make it anew otherwise.
ensure_venv() {
    local python="${PYTHON:-python3}" existing
    if [ -n "${PYTHON:-}" ]; then check_python "$python"; fi
    existing="$(python_version "$VENV_PYTHON")"
    if [ -e "$UNFINISHED" ]; then
        say "the last installation was cut short: starting it again (what was downloaded is kept in pip's cache)"
    elif [ -e "$VENV" ] && [ -z "$existing" ]; then
        say ".venv is broken (its Python no longer runs): making it anew"
    elif [ -n "$existing" ] && [ -n "${PYTHON:-}" ] && [ "$existing" != "$(python_version "$python")" ]; then
        say ".venv has Python $existing, PYTHON asks for $(python_version "$python"): making it anew"
    elif [ -n "$existing" ]; then
        return
    fi
    make_venv "$python"
}

# What an installation depends on. ROOT is part of it because the editable package points there.
fingerprint() {
    {
        echo "$ROOT"
        python_version "$VENV_PYTHON"
        (cd "$ROOT" && cat "$@")
    } | cksum
}

# pip's words, cut down to a line for each download of 10 MB or more and one where the unpacking starts.
show_progress() {
    local line commas large=' \([0-9][0-9]+\.?[0-9]* [MG]B\)'
    while IFS= read -r line; do
        case "$line" in
            *Downloading*) if [[ "$line" =~ $large ]]; then echo "  downloading ${line##*Downloading }"; fi ;;
            "Installing collected packages:"*)
                commas="${line//[^,]/}"
                echo "  unpacking $((${#commas} + 1)) packages"
                ;;
            *WARNING:\ Retrying*) echo "  no answer from the package index, trying again" ;;
        esac
    done
}

# A sign of life every 20 s, for as long as this script lives. The sleep gives up what it inherits, for it
# outlives the function by some seconds: standard output (a pipe's reader waits for it) and the lock.
tick() {
    local start=$SECONDS
    while sleep 20 >/dev/null 2>&1 9<&- && kill -0 $$ 2>/dev/null; do
        echo "  ... $((SECONDS - start)) s, $(($(kilobytes_used "$VENV") / 1024)) MB in .venv"
    done
}

explain_pip_failure() {
    local log="$1" platform
    platform="$(uname -s) $(uname -m), Python $(python_version "$VENV_PYTHON")"
    if grep -qi 'No space left on device' "$log"; then
        fail "the disk is full: $INSTALLED_GB GB for .venv and $DOWNLOAD_GB GB for downloads are needed at $ROOT"
    elif grep -qiE 'name resolution|NewConnectionError|Connection(Reset)?Error|timed out|Max retries|ProxyError|IncompleteRead|CERTIFICATE_VERIFY' "$log"; then
        fail "a download failed: the package index cannot be reached, or the connection broke" \
            "behind a proxy, set https_proxy; for a mirror, PIP_INDEX_URL; then run this again" \
            "(what was downloaded is kept); pip's last words:" "$(tail -n 3 "$log" | cut -c 1-300)"
    elif grep -qiE "command '?[^ ]*(cc|clang|g\+\+|gcc)[^ ]*'? failed|(gcc|cc|clang|g\+\+)'?: (command not found|No such file)|Python\.h" "$log"; then
        fail "a package has no wheel for this machine ($platform) and compiling it failed for lack of a C compiler" \
            "Debian, Ubuntu: apt-get install build-essential python3-dev; macOS: xcode-select --install"
    elif grep -qi 'No matching distribution found' "$log"; then
        fail "the pinned versions have no wheel for this machine ($platform)" \
            "they exist for Python 3.10 to 3.14 on Linux x86_64 and aarch64 (glibc 2.28 or newer) and macOS 14 on Apple silicon" \
            "$(grep -i 'No matching distribution found' "$log" | head -n 1)"
    fi
    fail "pip could not install the requirements; its last words:" "$(tail -n 12 "$log" | cut -c 1-300)"
}

pip_install() {
    local log="$VENV/install.log" failed=""
    # Unpacked beside .venv's own files, so that a small /tmp does not matter and check_disk speaks for all of it.
    mkdir -p "$VENV/tmp"
    tick 9<&- &
    local ticker=$!
    # pip takes a Ctrl-C as its own and exits 1: without this it would look like a failure of pip's.
    trap 'kill "$ticker" 2>/dev/null || true; fail "interrupted: run this again, the installation starts over"' INT
    TMPDIR="$VENV/tmp" PIP_USER=0 "$VENV_PYTHON" -m pip install --disable-pip-version-check --no-input \
        --progress-bar off "$@" 2>&1 </dev/null | tee -a "$log" | show_progress || failed=yes
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    rm -rf "$VENV/tmp"
    if [ -z "$failed" ]; then return; fi
    # Whoever failed before unpacking has changed nothing: .venv is as good as it was.
    if ! grep -q '^Installing collected packages' "$log"; then rm -f "$UNFINISHED"; fi
    explain_pip_failure "$log"
}

# install NAME FILES WHAT PIP_ARGUMENTS...: run pip unless NAME's stamp says that it ran for these very FILES.
install() {
    local name="$1" files="$2" what="$3" stamp="$VENV/.installed-$1"
    shift 3
    # shellcheck disable=SC2086 # the file names have no spaces, the folder they are in may
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint $files)" ]; then return; fi
    say "installing $what"
    rm -f "$stamp" "$VENV/install.log"
    touch "$UNFINISHED"
    (cd "$ROOT" && pip_install "$@")
    # shellcheck disable=SC2086
    fingerprint $files >"$stamp"
    rm -f "$UNFINISHED"
}

# Two of these at once would trip over each other: the second waits (where there is flock; macOS has none).
lock() {
    exec 9<"$ROOT/scripts/_setup.sh"
    if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
        say "another installation into .venv is running: waiting for it"
        flock 9
    fi
}

unlock() { exec 9<&-; }

# prepare [dev]: .venv with the pinned requirements and the package, with the test tools too when asked for.
prepare() {
    lock
    ensure_venv
    install core "requirements.txt" \
        "requirements.txt ($DOWNLOAD_GB GB to download, $INSTALLED_GB GB unpacked: some minutes, once)" -r requirements.txt
    install package "requirements.txt setup.py" "this package, editable" --no-deps --no-build-isolation -e .
    if [ "${1:-}" = dev ]; then
        install dev "requirements.txt requirements-dev.txt" "requirements-dev.txt (60 MB)" \
            -c requirements.txt -r requirements-dev.txt
    fi
    unlock
}
