#!/bin/sh
# Redis with every write on disk and a password that stands on no command line.
set -eu
: "${REDIS_PASSWORD:?set REDIS_PASSWORD}"
exec redis-server - <<END_OF_FILE
bind * -::*
port 6379
dir /srv/redis
requirepass $REDIS_PASSWORD
appendonly yes
save ""
maxmemory-policy noeviction
END_OF_FILE
