#!/bin/sh
# Fill .venv from uv.lock. Says what this machine lacks, a line for each, before it downloads anything.
#   stack/bootstrap.sh UV_VERSION [PYTHON]
set -eu
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # every start would compile everything again
uv_version=$1
needed_gb=4
lacks=0

lack() {
    echo "headrace: $*" >&2
    lacks=1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python=
for candidate in ${2:-python3.13 python3.12 python3.11 python3}; do
    if new_enough "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    lack "Python 3.11 or newer is missing: install it (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python), or name one: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    lack "the venv module of $python is missing: install it (Debian, Ubuntu: apt install python3-venv)"
fi
command -v git >/dev/null 2>&1 || lack "git is missing: install it (Debian, Ubuntu: apt install git; macOS: xcode-select --install)"
if [ ! -x .venv/bin/uv ]; then
    free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "${free_gb:-$needed_gb}" -ge "$needed_gb" ] || lack "the disk of $(pwd) has $free_gb GB free: $needed_gb GB are needed"
fi
[ "$lacks" -eq 0 ] || exit 1

echo "headrace: filling .venv from uv.lock (half a minute and 1.1 GB the first time)"
if [ ! -x .venv/bin/python ] || ! new_enough .venv/bin/python; then
    rm -rf .venv
    "$python" -m venv .venv
fi
if [ "$(.venv/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$uv_version" ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
fi
exec .venv/bin/uv sync --frozen --compile-bytecode
