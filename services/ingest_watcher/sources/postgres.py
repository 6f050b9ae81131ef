"""What only PostgreSQL can be asked: which of its transactions may still put a row below the maximum, and whether it tells of new rows.

Three rules, by what the cursor is (docs/decisions.md has the reasons):

integer, table   An INSERT locks the table before its default draws a number, and the draw itself locks the sequence, both until the transaction's
                 end. So only who holds such a lock (RowExclusiveLock on the table, its partitions or the sequence) may have a lower number.
time; view       `now()` is the start of the transaction, which may not have touched the table yet; the tables of a view hold the locks. So every
                 transaction of this database counts.
standby          The primary's locks are not seen there; its snapshot is, which knows the transactions that have written something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from services.ingest_watcher.sources.horizon import Horizon
from services.ingest_watcher.sources.listen import Listener
from services.ingest_watcher.sources.settling import FIRST_PAUSE_S, Mark, Marks, Snapshot, Writers
from shared.errors import Refused, Unavailable

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection

TRIGGER = "headrace_notify"  # deploy/postgresql/notify.sql
HELD_S = 10.0
# A transaction's time is taken when its first statement arrives, and the transaction is listed a moment later.
GRACE_S = 0.2
_INTEGERS = {"int2", "int4", "int8", "numeric"}

_RELATION = """
WITH RECURSIVE tree AS (
    SELECT to_regclass(quote_ident(%(table)s))::oid AS oid
    UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid
), cursors AS (
    SELECT a.attrelid, a.attnum FROM pg_attribute a JOIN tree ON a.attrelid = tree.oid WHERE a.attname = %(cursor)s
), drawn AS (
    SELECT d.objid AS oid FROM cursors c JOIN pg_depend d ON d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
    WHERE d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass
    UNION
    SELECT d.refobjid FROM cursors c JOIN pg_attrdef f ON f.adrelid = c.attrelid AND f.adnum = c.attnum
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
), sequences AS (
    SELECT q.seqrelid, q.seqcache FROM pg_sequence q JOIN drawn ON drawn.oid = q.seqrelid
)
SELECT n.nspname || '.' || r.relname AS name, c.relkind IN ('r', 'p') AS is_table, t.typname AS type,
    ARRAY(SELECT oid FROM tree) AS tables, ARRAY(SELECT seqrelid FROM sequences) AS sequences,
    (SELECT max(seqcache) FROM sequences) AS cache, pg_is_in_recovery() AS standby,
    EXISTS (SELECT FROM pg_trigger g JOIN tree ON g.tgrelid = tree.oid WHERE g.tgname = %(trigger)s AND g.tgenabled <> 'D') AS tells
FROM pg_class c JOIN pg_class r ON r.oid = coalesce(pg_partition_root(c.oid), c.oid) JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = %(cursor)s
JOIN pg_type t ON t.oid = a.atttypid
WHERE c.oid = to_regclass(quote_ident(%(table)s))
"""
_WRITERS = """
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND mode = 'RowExclusiveLock' AND granted AND pid IS DISTINCT FROM pg_backend_pid()
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND (relation = ANY(%(tables)s::oid[]) OR relation IN (SELECT oid FROM pg_class WHERE relkind = 'S' AND %(any_sequence)s))
"""
# Without a user it is the server's own work, such as autovacuum.
_ALL = """
SELECT l.virtualtransaction FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid()
AND a.datname = current_database() AND a.usesysid IS NOT NULL
UNION
SELECT l.virtualtransaction FROM pg_locks l JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
WHERE l.pid IS NULL AND p.database = current_database()
"""
_SNAPSHOT = "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() s"
_WHO = """
SELECT l.pid, a.usename, a.application_name, a.xact_start, p.gid, p.prepared
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
WHERE l.virtualtransaction = %(id)s ORDER BY p.gid NULLS LAST LIMIT 1
"""


@dataclass(frozen=True)
class Relation:
    """The table, as the catalogue knows it now: partitions come and go."""

    name: str  # with its schema; of a partition, that of the whole: so the trigger calls it
    is_table: bool
    type: str
    tables: list[int]
    sequences: list[int]  # that the cursor's default draws from
    cache: int | None
    standby: bool
    tells: bool  # the trigger is installed

    @property
    def is_number(self) -> bool:
        return self.type in _INTEGERS


class Postgres:
    """One table of a PostgreSQL. It is listened to from the first look that finds the trigger on it."""

    def __init__(
        self,
        table: str,
        cursor: str,
        lag_s: float,
        clock: Callable[[], float],
        connect: Callable[[], psycopg.Connection[Any]],
        told: Callable[[], None],
    ) -> None:
        self._names = {"table": table, "cursor": cursor, "trigger": TRIGGER}
        self._lag_s, self._clock = lag_s, clock
        self._marks = Marks(clock)
        self._grace = Horizon(GRACE_S, clock)
        self._connect, self._told = connect, told
        self._stirred = threading.Event()
        self._was_told = self._again = False
        self._listener: Listener | None = None

    def stirred(self) -> bool:
        """Whether it has told of new rows since the last call."""
        if not self._stirred.is_set():
            return False
        self._stirred.clear()
        self._was_told = True
        return True

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def settled(self, connection: Connection, newest: Any) -> Any:
        """The newest maximum that nobody can get below any more; `newest` was read before, on this connection; None where there is none.

        Raises `Refused` for numbers that come in no order.
        """
        # One tells for all that are open then (decision 19). Who of them commits after `newest` was read and before the writers are is seen by
        # neither, so whoever was told looks once more.
        self._again, self._was_told = self._was_told, False
        row = connection.exec_driver_sql(_RELATION, self._names).mappings().first()
        if row is None:  # dropped a moment ago: the next look says so
            return None
        relation = Relation(**row)
        if relation.tells and not relation.standby and self._listener is None:
            self._listener = Listener(self._connect, relation.name, self._tell)
        return None if newest is None else self._settle(connection, relation, newest)

    def _tell(self) -> None:
        self._stirred.set()
        self._told()

    def _settle(self, connection: Connection, relation: Relation, newest: Any) -> Any:
        if relation.is_number and (relation.cache or 1) > 1 and not self._lag_s:
            raise Refused(
                f"the numbers of {self._names['cursor']!r} come from a sequence with CACHE {relation.cache}: each session draws so many at once "
                "and uses lower ones later. Say ALTER SEQUENCE … CACHE 1, or set `lag` to how long a session may keep some"
            )
        found = self._marks.settled(newest, _open(connection, relation))
        graced = newest if relation.is_number else self._grace.settled(newest)
        return None if found is None or graced is None else min(found, graced)

    def settles_in_s(self) -> float | None:
        """A pause after which it is worth looking again; None where only a poll or news can bring more."""
        again = FIRST_PAUSE_S if self._again else None
        pauses = (again, self._marks.settles_in_s(), self._grace.settles_in_s())
        return min((pause for pause in pauses if pause is not None), default=None)

    def check_held(self, connection: Connection, above: Any) -> None:
        """Raise `Unavailable` with who it is, when rows have been held back for long."""
        mark = self._marks.oldest()
        if mark is None or self._clock() - mark.since_s < HELD_S:
            return
        since = datetime.now(UTC) - timedelta(seconds=self._clock() - mark.since_s)
        after = "the rows" if above is None else f"the rows above {above}"
        raise Unavailable(f"{after} wait for {_describe(connection, mark, since)}, which may still add lower ones")


def _open(connection: Connection, relation: Relation) -> Writers | Snapshot:
    if relation.standby:
        xmin, xmax = connection.exec_driver_sql(_SNAPSHOT).one()
        return Snapshot(xmin, xmax)
    if not (relation.is_number and relation.is_table):
        return Writers(frozenset(connection.exec_driver_sql(_ALL).scalars()))
    # Numbers that no default draws may come from any sequence.
    which = {"tables": relation.tables + relation.sequences, "any_sequence": not relation.sequences}
    return Writers(frozenset(connection.exec_driver_sql(_WRITERS, which).scalars()))


def _describe(connection: Connection, mark: Mark, since: datetime) -> str:
    if isinstance(mark.open, Snapshot):
        return f"a transaction of the primary that has been open since {since:%Y-%m-%d %H:%M} UTC at least"
    who = connection.exec_driver_sql(_WHO, {"id": min(mark.open.ids)}).mappings().first()
    if who is None:
        return "a transaction that is just ending"
    if who["gid"] is not None:
        began = who["prepared"].astimezone(UTC)
        return f"the transaction that was prepared as {who['gid']!r} at {began:%Y-%m-%d %H:%M} UTC (end it: COMMIT or ROLLBACK PREPARED)"
    began = who["xact_start"].astimezone(UTC) if who["xact_start"] else since
    name = " ".join(filter(None, [who["usename"], who["application_name"]]))
    return f"a transaction that has been open since {began:%Y-%m-%d %H:%M} UTC (server process {who['pid']}, {name})"
