"""What could not be read is kept, the newest, once an entry, in a form that every database takes."""

from __future__ import annotations

import pytest

from shared.ledger import Ledger, rejections
from shared.ledger.rejections import Rejected


def note(ledger: Ledger, entry: str, **changes: str) -> None:
    told = {"source": "/loader", "reason": "not JSON", "excerpt": "{"} | changes
    with ledger.write() as tx:
        rejections.note(tx, Rejected(entry, **told))


def test_an_entry_that_comes_again_is_kept_once(ledger: Ledger) -> None:
    for entry in ("1-0", "2-0", "1-0"):
        note(ledger, entry)
    with ledger.read() as tx:
        assert [row.entry for row in rejections.find_all(tx, before=None, limit=9)] == ["1-0", "2-0"]
        assert rejections.count(tx) == 2


def test_only_the_newest_are_kept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "KEPT", 3)
    for number in range(6):
        note(ledger, f"{number}-0")
    with ledger.read() as tx:
        assert [row.entry for row in rejections.find_all(tx, before=None, limit=9)] == ["5-0", "4-0", "3-0"]


def test_what_no_database_takes_is_replaced_and_what_is_long_is_cut(ledger: Ledger) -> None:
    note(ledger, "1-0", source="s" * 5000, reason="r" * 5000, excerpt="a\x00b\ud800" + "x" * 5000)
    with ledger.read() as tx:
        row = rejections.find_all(tx, before=None, limit=1)[0]
    assert row.excerpt == "a\ufffdb\ufffd" + "x" * (rejections.MAX_EXCERPT - 4)
    assert (len(row.source), len(row.reason)) == (rejections.MAX_SOURCE, rejections.MAX_REASON)
