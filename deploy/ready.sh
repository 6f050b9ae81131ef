#!/bin/sh
# Whether the process of this container has said that it is ready, and lives: its pid is in the file.
kill -0 "$(cat "$HEADRACE_STATE_DIR/ready/$HEADRACE_PROCESS")"
