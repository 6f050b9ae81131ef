"""What no test may see: a commit that bears no name, a state that changes otherwise than its transition says, I/O while a transaction is open."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
from sqlalchemy import Engine, event

from shared.ledger import Ledger, Transaction, steps

OUTSIDE = frozenset(
    {"socket.connect", "socket.getaddrinfo", "http.client.send", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"}
)  # fmt: skip
"""Audit events of Python itself. The databases' own drivers speak in C, and are not among them."""
CHANGES = ("INSERT", "UPDATE", "DELETE")
ANYWHERE = ("deliveries.tell",)  # a notice and its deliveries are part of whatever is told


class Guard:
    """Watches every ledger of this process; `found` says what was broken, and where."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.passed: set[str] = set()  # what left the process while no transaction was open
        self._here = threading.local()

    @contextmanager
    def watching(self) -> Iterator[None]:
        begun, write = Ledger._begun, Ledger.write
        guard = self

        @contextmanager
        def watched_begun(ledger: Ledger, *, writes: bool) -> Iterator[Transaction]:
            with begun(ledger, writes=writes) as tx, guard._open():
                yield tx

        @contextmanager
        def watched_write(ledger: Ledger, *, tells: bool = True) -> Iterator[Transaction]:
            with write(ledger, tells=tells) as tx:
                guard._begin(tx)
                yield tx
                guard._check(tx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "_begun", watched_begun)
            patch.setattr(Ledger, "write", watched_write)
            event.listen(Engine, "after_cursor_execute", self._executed)
            yield
            event.remove(Engine, "after_cursor_execute", self._executed)

    def heard(self, name: str, _args: Any) -> None:
        """An audit hook: it can never be taken out again."""
        if name not in OUTSIDE:
            return
        if getattr(self._here, "open", 0):
            self._tell(f"{name} while a transaction of the ledger is open")
        self.passed.add(name)

    @contextmanager
    def _open(self) -> Iterator[None]:
        self._here.open = getattr(self._here, "open", 0) + 1
        try:
            yield
        finally:
            self._here.open -= 1

    def _begin(self, tx: Transaction) -> None:
        self._here.changed = False
        if tx.connection.dialect.name == "sqlite":
            _watch_states(tx)

    def _executed(self, _connection: Any, cursor: Any, statement: str, *_more: Any) -> None:
        if statement.lstrip()[:6].upper() in CHANGES and cursor.rowcount:
            self._here.changed = True

    def _check(self, tx: Transaction) -> None:
        if self._here.changed and not tx.did:
            self._tell("rows were changed by no transition: mark the function with @transition")
        if tx.connection.dialect.name == "sqlite":
            for noun, before, after in _moved(tx):
                if not any(steps.Step(noun, before, after) in _steps(name) for name in (*tx.did, *ANYWHERE)):
                    self._tell(f"{noun}: {before} → {after}, which the docstring of {', '.join(tx.did)} does not name")

    def _tell(self, what: str) -> None:
        self.found.append(f"{what}\n{''.join(traceback.format_stack(limit=12)[:-2])}")
        raise AssertionError(what)


GUARD = Guard()
sys.addaudithook(GUARD.heard)


@cache
def _steps(name: str) -> frozenset[steps.Step]:
    found = {one.name: one for one in steps.described()}.get(name)
    return frozenset(found.steps) if found is not None else frozenset()


def _watch_states(tx: Transaction) -> None:
    """Triggers of this connection alone, past SQLAlchemy: what a test reads of its statements stays as it is."""
    raw = tx.connection.connection.driver_connection
    assert raw is not None
    raw.execute("CREATE TEMP TABLE IF NOT EXISTS moved (noun TEXT, before TEXT, after TEXT)")
    raw.execute("DELETE FROM moved")
    tables = {name for (name,) in raw.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")}
    for noun in tables & set(steps.NOUNS):
        told = f"INSERT INTO moved VALUES ('{noun}', "
        for when, words in (
            (f"INSERT ON main.{noun}", "'none', new.state"),
            (f"DELETE ON main.{noun}", "old.state, 'none'"),
            (f"UPDATE OF state ON main.{noun} WHEN old.state <> new.state", "old.state, new.state"),
        ):
            name = f"{noun}_{when[:6]}".lower()
            raw.execute(f"CREATE TEMP TRIGGER IF NOT EXISTS {name} AFTER {when} BEGIN {told}{words}); END")


def _moved(tx: Transaction) -> list[tuple[str, str, str]]:
    raw = tx.connection.connection.driver_connection
    assert raw is not None
    return list(raw.execute("SELECT DISTINCT noun, before, after FROM moved"))
