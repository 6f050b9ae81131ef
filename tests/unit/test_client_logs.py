"""A log with bars of progress in it, as `headrace logs` shows it."""

from __future__ import annotations

import pytest
from headrace.cli.logs import Lines, last_state

BAR = "begins\n\r  0%|   | 0/3\r 33%|#  | 1/3\r 66%|## | 2/3\r100%|###| 3/3\nends\n"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_of_a_bar_the_last_state_is_left(piece: int) -> None:
    lines = Lines(live=False)
    shown = "".join(lines.feed(BAR[at : at + piece]) for at in range(0, len(BAR), piece))
    assert shown + lines.end() == "begins\n100%|###| 3/3\nends\n"


@pytest.mark.parametrize("piece", [1, 5, 1000])
def test_a_bar_that_is_not_done_is_shown_as_it_stands(piece: int) -> None:
    text = "begins\n\r  0%|   | 0/3\r 33%|#  | 1/3\r"
    lines = Lines(live=False)
    shown = "".join(lines.feed(text[at : at + piece]) for at in range(0, len(text), piece))
    assert shown + lines.end() == "begins\n 33%|#  | 1/3"


def test_on_a_terminal_a_bar_moves() -> None:
    lines = Lines(live=True)
    assert lines.feed("\r 33%") == " 33%"
    assert lines.feed("\r 66%") == "\r\x1b[K 66%"
    assert lines.feed("\r100%\nends\n") == "\r\x1b[K100%\nends\n"
    assert lines.end() == ""


def test_a_bar_that_goes_on_for_ever_fills_no_memory() -> None:
    lines = Lines(live=False)
    for n in range(10_000):
        assert lines.feed(f"\r{n:5}|" + "#" * 50) == ""
    assert len(lines._open) < 200
    assert lines.end() == " 9999|" + "#" * 50


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("plain", "plain"),
        ("  indented  ", "  indented  "),
        ("", ""),
        ("windows\r", "windows"),
        ("\r50%\r     \r", "50%"),
        ("\x1b[A\r\x1b[K 2/3", " 2/3"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
    ],
)
def test_what_a_line_shows_after_its_carriage_returns(line: str, left: str) -> None:
    assert last_state(line) == left
