#!/bin/sh
# Write .env from .env.example with a random value in place of each <random>, for its owner alone. Leaves an existing .env as it is.
#   deploy/env.sh [EXAMPLE [ENV]]
set -eu
example=${1:-.env.example}
env=${2:-.env}

if [ -e "$env" ]; then
    echo "headrace: $env exists already and was left as it is; its passwords are those that the volumes were made with" >&2
    exit 0
fi
umask 077
draft=$env.$$
trap 'rm -f "$draft"' EXIT
while IFS= read -r line; do
    case $line in
        *=\<random\>) echo "${line%%=*}=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
        *) echo "$line" ;;
    esac
done <"$example" >"$draft"
mv "$draft" "$env"
echo "headrace: wrote $env; name your headrace.toml there (HEADRACE_CONFIG), then: docker compose up -d"
