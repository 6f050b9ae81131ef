"""What a process is told, what it refuses to be told, and what it does not leave lying about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.settings import load

ROOT = Path(__file__).parents[2]
TOLD = {
    "HEADRACE_STATE_DIR": "/srv/headrace",
    "HEADRACE_LEDGER_URL": "sqlite:////srv/ledger.db",
    "HEADRACE_REDIS_URL": "redis://127.0.0.1",
    "HEADRACE_BLOBS_URL": "file:///srv/blobs",
    "HEADRACE_LOGS_URL": "file:///srv/logs",
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("HEARTBEAT_S", "11", "at most a third"),
        ("LEASE_S", "29", "at most a third"),
        ("LEASE_S", "soon", "lease_s"),
        ("SLOTS", "0", "slots"),
        ("CHILD_UIDS", "0", "child_uids"),
        ("CHILD_UIDS", "root", "child_uids"),
        ("CHILD_UIDS", "1000-", "child_uids"),
        ("API_REQUESTS_PER_S", "-1", "api_requests_per_s"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load({**TOLD, f"HEADRACE_{name}": value})


def test_what_is_told_is_taken() -> None:
    found = load({**TOLD, "HEADRACE_CHILD_UIDS": "200000-200031", "HEADRACE_API_REQUESTS_PER_S": "0"})
    assert (found.child_uids, found.api_requests_per_s, found.heartbeat_s) == ("200000-200031", 0, 10)


def test_a_secret_stays_with_the_process_and_is_gone_from_its_environment_in_proc() -> None:
    """By its name, for the password in it, or because the configuration refers to it; the rest stays as it is."""
    code = """
import os
from shared import settings
settings.load()
settings.resolve("env:PLAIN_NAME")
print(os.environ["PLAIN_NAME"], os.environ["ODD"], os.environ["HEADRACE_REDIS_URL"])
print(open("/proc/self/environ").read())
"""
    planted = {
        "PLAIN_NAME": "mark-one",
        "ODD": "amqp://user:mark-two@host/",
        "AWS_SESSION_TOKEN": "mark-three",
        "HEADRACE_REDIS_URL": "redis://:mark-four@host/",
        "FLIGHTS_DSN": "mark-five",
        "HEADRACE_EXTRA_INDEX_URLS": "https://mark-six@host/simple",
    }
    environ = {**TOLD, "PATH": os.environ["PATH"], "UNTOUCHED": "mark-none", **planted}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kept, _, in_proc = done.stdout.partition("\n")
    assert kept == "mark-one amqp://user:mark-two@host/ redis://:mark-four@host/"
    assert [mark for mark in ("one", "two", "three", "four", "five", "six", "none") if f"mark-{mark}" in in_proc] == [
        "none"
    ]
