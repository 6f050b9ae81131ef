#!/bin/sh
# Install one group of pyproject.toml, as uv.lock says, into /opt/venv, byte-compiled.
#   deploy/packages.sh GROUP [--with-headrace]
set -eu
group=$1
case ${2:-} in
    --with-headrace) set -- --no-editable ;;
    *) set -- --no-install-workspace ;;
esac
uv sync --frozen --no-default-groups --only-group "$group" "$@"
# Without the tests that packages carry: with them it takes three times as long. A file that does not compile (a template, say) is its package's
# own business. By hash, not by time: a layer may be unpacked with other times.
/opt/venv/bin/python -m compileall -q -j 0 -x '/tests?/' --invalidation-mode unchecked-hash /opt/venv/lib || true
