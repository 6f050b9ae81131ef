#!/bin/sh
# An S3 server on a directory, with one key pair, for a single machine. The buckets are directories; here they are made.
set -eu
: "${AWS_ACCESS_KEY_ID:?set AWS_ACCESS_KEY_ID}" "${AWS_SECRET_ACCESS_KEY:?set AWS_SECRET_ACCESS_KEY}"
for bucket in ${BUCKETS:?name the buckets}; do
    mkdir -p "/var/lib/headrace/$bucket"
done
# in the environment, since a command line can be read by all; in double quotes, since rclone reads a list of such pairs there
export RCLONE_AUTH_KEY="\"$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY\""
unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
exec rclone serve s3 --addr 0.0.0.0:9000 --config /dev/null /var/lib/headrace
