"""Where the client finds a stack, and what it says when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from headrace import Problem, connect
from headrace.connection import Unreachable, api_path


def endpoints(state: Path, url: str = "http://127.0.0.1:8000") -> None:
    state.mkdir(parents=True)
    (state / "operator.token").write_text("hr_operator\n")
    (state / "endpoints.json").write_text(json.dumps({"api": url, "token_file": str(state / "operator.token")}))


def test_the_address_of_the_environment_comes_first(tmp_path: Path) -> None:
    endpoints(tmp_path / ".headrace")
    found = connect({"HEADRACE_URL": "https://hr.example.com/", "HEADRACE_TOKEN": "t"}, tmp_path)
    assert (found.url, found.token) == ("https://hr.example.com", "t")


def test_a_named_state_comes_before_the_directory(tmp_path: Path) -> None:
    endpoints(tmp_path / "a" / ".headrace", "http://127.0.0.1:1")
    endpoints(tmp_path / "b", "http://127.0.0.1:2")
    assert connect({"HEADRACE_STATE": str(tmp_path / "b")}, tmp_path / "a").url == "http://127.0.0.1:2"


def test_a_running_stack_is_found_from_a_directory_below(tmp_path: Path) -> None:
    endpoints(tmp_path / ".headrace")
    below = tmp_path / "services" / "storefront"
    below.mkdir(parents=True)
    found = connect({}, below)
    assert (found.url, found.token) == ("http://127.0.0.1:8000", "hr_operator")


def test_a_stopped_stack_near_by_does_not_hide_a_running_one_above(tmp_path: Path) -> None:
    endpoints(tmp_path / ".headrace")
    (tmp_path / "project" / ".headrace").mkdir(parents=True)
    assert connect({}, tmp_path / "project").url == "http://127.0.0.1:8000"


def test_a_stopped_stack_is_named_with_the_command_that_starts_it(tmp_path: Path) -> None:
    (tmp_path / ".headrace").mkdir()
    with pytest.raises(Problem, match=r"is not running .*make up STATE="):
        connect({}, tmp_path)


def test_without_any_stack_both_ways_are_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"HEADRACE_URL is not set.*make up"):
        connect({}, tmp_path)


@pytest.mark.parametrize("url", ["headrace.example.com", "ftp://x", "http://", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Problem, match="is no address"):
        connect({"HEADRACE_URL": url})


def test_half_written_endpoints_are_a_problem_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text('{"api": ')
    with pytest.raises(Problem, match="can't read"):
        connect({"HEADRACE_STATE": str(tmp_path)})


def test_a_stack_that_is_gone_is_one_line_with_the_next_step() -> None:
    # Port 1 of loopback: nothing listens there.
    with pytest.raises(Unreachable) as caught:
        connect({"HEADRACE_URL": "http://127.0.0.1:1", "HEADRACE_TOKEN": "t"}).get("/v1/status")
    assert "nothing answers at http://127.0.0.1:1 (Connection refused; address from HEADRACE_URL)" in str(caught.value)
    assert "make up" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_can_not_reach_another_address() -> None:
    assert api_path("models", "../../x?y#z", "why") == "/v1/models/..%2F..%2Fx%3Fy%23z/why"


def test_the_token_is_not_in_the_representation() -> None:
    assert "secret" not in repr(connect({"HEADRACE_URL": "http://127.0.0.1:1", "HEADRACE_TOKEN": "secret"}))
