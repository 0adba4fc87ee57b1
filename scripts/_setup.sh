# shellcheck shell=bash
# Sourced by the other scripts, for: --help, ROOT, say, fail, cores, and `prepare [dev]`, which makes .venv of
# the pinned requirements (dev: the test tools too) and this package. PYTHON=/path/to/python3 picks the Python.

case " $* " in # a sourced file has its caller's arguments; the help is the caller's first comment
    *" --help "* | *" -h "*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;;
esac
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv" VENV_PYTHON="$ROOT/.venv/bin/python"
STATE="$VENV/.setup"    # the `inputs` of what is installed, or "unfinished"
UV=uv==0.13.9 DISK_GB=7 # if none is on the PATH; on Linux x86_64, where torch brings the CUDA libraries

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$1"; }
fail() { say "error: $1" >&2 && printf '  %s\n' "${@:2}" >&2 && exit 1; }
cores() { { env -u OMP_NUM_THREADS nproc || getconf _NPROCESSORS_ONLN || echo 1; } 2>/dev/null | at_most_8; }
at_most_8() { awk '{ print ($1 > 8 ? 8 : $1) }'; } # more threads only slow a small model down
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "none that runs"; }
inputs() { (cd "$ROOT" && pwd && version "$VENV_PYTHON" && version "${PYTHON:-$VENV_PYTHON}" && cksum setup.py "$@"); }
ready() { [ "$(inputs "$@" | grep -cvxFf "$STATE" 2>&1)" = 0 ]; }

# check PYTHON: that it and the disk suffice, before anything is written or downloaded.
check() {
    local lack free held
    lack="$("$1" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("it is Python %d.%d" % sys.version_info[:2])
import venv, ensurepip' 2>&1 | tail -n 1)" || fail "'$1' cannot make .venv: ${lack:-it does not run}" \
        "Python 3.10 or newer with venv and ensurepip is needed. Debian and Ubuntu: apt-get install python3-venv," \
        "others: https://www.python.org/downloads/. Name it by PYTHON=/path/to/python3 bash scripts/$(basename "$0")"
    free="$(df -Pk "$ROOT" | awk 'NR == 2 { print $4 }')"
    # An earlier .venv is replaced. uv's cache does not count: it may be that of other projects.
    held="$({ du -sk "$VENV" 2>/dev/null || true; } | awk 'END { print $1 + 0 }')"
    [ $((free + held)) -ge $((DISK_GB * 1048576)) ] ||
        fail "too little disk: $((free / 1048576)) GB free at $ROOT, $DISK_GB GB needed" \
            "Most of it is torch with its CUDA libraries. Make room, or move the repository to a larger disk."
}

# uv_install FILES: from pip's mirror if it has one; uv's cache is in .venv if uv cannot link files from it.
uv_install() (
    mirror="${PIP_INDEX_URL:-$("$VENV_PYTHON" -m pip config get global.index-url 2>/dev/null)}"
    mirror="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$mirror}}"
    if [ -n "$mirror" ]; then export UV_DEFAULT_INDEX="$mirror" PIP_INDEX_URL="$mirror"; fi
    export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}" PIP_USER=0 uv=uv
    # Many containers set this; without bytecode each start would take three times as long.
    [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1
    "$uv" --version >/dev/null 2>&1 || uv="$VENV/bin/uv"
    "$uv" --version >/dev/null 2>&1 || "$VENV_PYTHON" -m pip install --disable-pip-version-check -q "$UV" || return
    link="$("$uv" cache dir)/.link-$$"
    { mkdir -p "${link%/*}" && ln -f "$STATE" "$link" && rm "$link"; } 2>/dev/null ||
        export UV_CACHE_DIR="${UV_CACHE_DIR:-$VENV/.cache}"
    cd "$ROOT" && "$uv" pip install --python "$VENV_PYTHON" "${@/#/-r}" &&
        "$uv" pip install --python "$VENV_PYTHON" --no-deps --no-build-isolation -e .
)

# install FILES into .venv, made anew if it is broken. A killed uv can leave half a package that looks whole.
install() {
    local python="${PYTHON:-python3}" has before
    has="$(version "$VENV_PYTHON")" before="$(cat "$STATE" 2>/dev/null || true)"
    if [ "$before" = unfinished ]; then has="an unfinished installation"; fi
    if [[ "$has" != 3.[1-9][0-9] || "$has" != "$(version "${PYTHON:-$VENV_PYTHON}")" ]]; then
        check "$python"
        say "making .venv with Python $(version "$python") (until now: $has)"
        python="$("$python" -c 'import sys; print(sys._base_executable)')" # not .venv's own
        mkdir -p "$VENV"
        echo unfinished >"$STATE"
        rm -rf "${VENV:?}"/* # but .setup and .cache
        "$python" -m venv "$VENV"
        before=""
    fi
    say "installing $* and this package (the first time 3 GB to download, $DISK_GB GB on disk)"
    echo unfinished >"$STATE"
    if uv_install "$@"; then inputs "$@" >"$STATE" && return; fi
    # What failed before it changed a package leaves .venv as good as it was.
    if [ -z "$(find "$VENV/lib" -newer "$STATE" | head -n 1)" ]; then echo "$before" >"$STATE"; fi
    fail "uv could not install $*; its own message is above" \
        "If a download failed, run this again: finished ones are kept. Proxy: https_proxy; mirror: PIP_INDEX_URL." \
        "Wheels exist for Python 3.10 to 3.14 on Linux (glibc 2.28 or newer) and macOS 14 (Apple silicon)."
}

prepare() {
    local files=(requirements.txt ${1:+requirements-dev.txt})
    if ready "${files[@]}"; then return; fi
    {
        if command -v flock >/dev/null && ! flock -n 9; then say "waiting for another installation" && flock 9; fi
        ready "${files[@]}" || install "${files[@]}"
    } 9<>"$ROOT/scripts/_setup.sh"
}
