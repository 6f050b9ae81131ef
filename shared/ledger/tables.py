"""Every table of the ledger. Instants are UTC; what has a state has the legal ones in `shared.lifecycle`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy import Column as C
from sqlalchemy.schema import DDL

from shared.lifecycle import RunState


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite keeps it without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


Big = BigInteger().with_variant(Integer, "sqlite")  # whose INTEGER has 64 bits, and numbers rows only under that name


def _id() -> C[Any]:
    return C("id", Big, primary_key=True, autoincrement=True)


counter = Table(
    "counter", metadata, C("name", String(40), primary_key=True), C("value", Big, nullable=False)
)  # numbers given in commit order: a reader of notices never passes over a late one

configuration = Table(
    "configuration",
    metadata,
    _id(),
    C("digest", String(80), nullable=False),
    C("body", Text, nullable=False),
    C("actor", String(200), nullable=False),
    C("applied_at", Instant, nullable=False),
)  # the newest row is in force

token = Table(
    "token",
    metadata,
    C("name", String(64), primary_key=True),
    C("sha256", String(64), nullable=False, unique=True),
    C("scopes", JSON, nullable=False),
    C("created_at", Instant, nullable=False),
)

dataset = Table(
    "dataset",
    metadata,
    C("name", String(64), primary_key=True),
    C("cut", JSON),  # how far the ledger knows it: {"upto", "holdout_above", "rows", "newest_time"}
    C("looked_at", Instant),
    C("nudged_at", Instant),
    C("error", Text),
    C("lease_owner", String(200)),
    C("lease_until", Instant),
)

report = Table(
    "report",
    metadata,
    _id(),
    C("source", String(400), nullable=False),
    C("event_id", String(400), nullable=False),
    C("dataset", String(64), nullable=False),
    C("arrival_id", ForeignKey("arrival.id")),  # empty for a nudge until the watcher has looked
    C("received_at", Instant, nullable=False),
    C("fingerprint", String(80)),  # where `event_id` is an Idempotency-Key: of what was sent with it
    UniqueConstraint("source", "event_id"),
)  # what was reported from outside: the same report twice finds the first (I2)

rejection = Table(
    "rejection",
    metadata,
    _id(),
    C("entry", String(64), nullable=False, unique=True),
    C("source", String(400)),
    C("reason", Text, nullable=False),
    C("excerpt", Text, nullable=False),
    C("at", Instant, nullable=False),
)  # entries of the stream that could not be read

arrival = Table(
    "arrival",
    metadata,
    _id(),
    C("dataset", String(64), nullable=False),
    C("above", JSON),
    C("upto", JSON),
    C("rows", Big),  # empty: unknown, which counts as enough
    C("origin", String(20), nullable=False),
    C("source", String(400)),
    C("event_id", String(400)),
    C("traceparent", String(64)),
    C("observed_at", Instant, nullable=False),
    Index("ix_arrival_dataset_id", "dataset", "id"),
)

release = Table(
    "release",
    metadata,
    _id(),
    C("model", String(64), nullable=False, index=True),
    C("name", String(200), nullable=False),
    C("commit", String(40), nullable=False),
    C("declaration", Text),
    C("refusal", Text),  # why it is not valid; the release before stays in force
    C("content", String(80)),  # digest of all in it that decides what a training makes of it
    C("moved_from", String(40)),  # the commit that a tag of this name was on before
    C("seen_at", Instant, nullable=False),
)

model = Table(
    "model",
    metadata,
    C("name", String(64), primary_key=True),
    C("release_id", ForeignKey("release.id")),  # in force: the newest valid one
    C("seen_id", ForeignKey("release.id")),  # the newest one, valid or not
    C("looked_at", Instant),
    C("error", Text),
    C("failed", Integer),  # runs in a row
    C("paused_at", Instant),  # after too many of them: nothing is trained of itself until it is empty again
)

PLACES = {
    "waiting": "state = 'waiting' AND sample IS NULL",
    "running": "state IN ('running','retrying') AND sample IS NULL",
    "sample_waiting": "state = 'waiting' AND sample IS NOT NULL",
    "sample_running": "state IN ('running','retrying') AND sample IS NOT NULL",
}
"""Of these a model has one each (I4)."""

run = Table(
    "run",
    metadata,
    _id(),
    C("model", String(64), nullable=False),
    C("state", String(20), nullable=False),
    C("reason", Text, nullable=False),
    C("asked", Boolean, nullable=False, default=False),  # a person or a new release asked: due at once
    C("again", Boolean),  # a person asked although nothing has changed
    C("sample", String(40)),  # "1%" or a number of rows: trains on so much only, answers no arrival, is never promoted
    C("release_id", ForeignKey("release.id"), nullable=False),  # frozen with the cut at the first claim
    C("compute_class", String(64), nullable=False),
    C("planned_at", Instant, nullable=False),
    C("due_at", Instant),
    C("sentence", Text, nullable=False, default=""),
    C("config_digest", String(80), nullable=False),
    C("rung_at", Instant),
    C("token", Integer, nullable=False, default=0),  # the fence: the number of the newest claim
    C("lease_owner", String(200)),
    C("lease_until", Instant),
    C("cancel_reason", Text),  # a person wants it to stop
    C("failures", Integer, nullable=False, default=0),
    C("lost", Integer, nullable=False, default=0),
    C("cut", JSON),
    C("cut_digest", String(80)),
    C("first_arrival_at", Instant),
    C("started_at", Instant),
    C("finished_at", Instant),
    C("progress", Float),
    C("progress_note", Text),
    C("bundle", String(80)),
    C(
        "checkpoint", JSON(none_as_null=True)
    ),  # the newest of an unfinished run: {"sha256", "size_bytes", "attempt", "at"}
    C("error", JSON),
    C("registration_error", Text),
    C("registration_lease", Instant),
    C("registrations", Integer, nullable=False, default=0),  # the fence of whoever registers it
    C("traceparent", String(64)),
    C("tidied_at", Instant),  # its bundle was taken away, and `bundle` is empty from then on
    *(
        Index(f"uq_run_{name}", "model", unique=True, sqlite_where=text(where), postgresql_where=text(where))
        for name, where in PLACES.items()
    ),
    Index("ix_run_state_due", "state", "due_at"),
    Index("ix_run_model_id", "model", "id"),
)

attempt = Table(
    "attempt",
    metadata,
    C("run_id", ForeignKey("run.id"), primary_key=True),
    C("number", Integer, primary_key=True, autoincrement=False),  # = the token of its claim
    C("worker", String(200), nullable=False),
    C("started_at", Instant, nullable=False),
    C("ended_at", Instant),
    C("outcome", String(20)),
    C("error", JSON),
    C("seconds", JSON),
    C("metrics", JSON(none_as_null=True)),  # by step, thinned out, as it trains: {name: [[step, value], …]}
    C("cpu_s", Float),
    C("gpu_s", Float),
    C("memory_bytes", Big),  # at its peak
    C("read_bytes", Big),
    C("written_bytes", Big),
)

score = Table(
    "score",
    metadata,
    C("run_id", ForeignKey("run.id"), primary_key=True),  # whose model was scored
    C("holdout", String(80), primary_key=True),  # digest of the rows
    C("rows", JSON, nullable=False),  # the row ranges themselves, so that a later worker can score the same
    C("metrics", JSON),
    C("error", Text),
    C("compute_class", String(64), nullable=False),
    C("lease_until", Instant),
    C("tries", Integer, nullable=False, default=0),
    C("scored_at", Instant),
)

version = Table(
    "version",
    metadata,
    _id(),
    C("model", String(64), nullable=False),
    C("number", Integer, nullable=False),
    C("run_id", ForeignKey("run.id"), nullable=False, unique=True),
    C("state", String(20), nullable=False),
    C("digest", String(80), nullable=False),  # of the composed model's manifest, which lies in the blob store under it
    C("mlflow_run", String(64), nullable=False),
    C("mlflow_model", String(64), nullable=False),
    C("registered_at", Instant, nullable=False),
    C("pinned_at", Instant),  # somebody relies on it: it is never tidied away
    C("pinned_by", String(200)),
    C("pin_reason", Text),
    C("tidied_at", Instant),  # its files no longer count, whatever is still there of them
    C("removed_at", Instant),  # MLflow has let go of it too
    UniqueConstraint("model", "number"),
)

verdict = Table(
    "verdict",
    metadata,
    _id(),
    C("version_id", ForeignKey("version.id"), nullable=False, index=True),
    C("champion_id", ForeignKey("version.id")),
    C("decision", String(20), nullable=False),
    C("reasons", JSON, nullable=False),
    C("holdout", String(80)),
    C("judged_at", Instant, nullable=False),
)

promotion = Table(
    "promotion",
    metadata,
    _id(),
    C("model", String(64), nullable=False),
    C("version_id", ForeignKey("version.id"), nullable=False),
    C("replaces_id", ForeignKey("version.id")),
    C("kind", String(20), nullable=False),  # promoted | rolled_back
    C("actor", String(200), nullable=False),
    C("reason", Text, nullable=False),
    C("intended_at", Instant, nullable=False),
    C("served_at", Instant),  # empty: the alias has not followed yet
    C("lease_until", Instant),  # of whoever moves the alias
    Index(
        "uq_promotion_intent",
        "model",
        unique=True,
        sqlite_where=text("served_at IS NULL"),
        postgresql_where=text("served_at IS NULL"),
    ),
    Index("ix_promotion_model_id", "model", "id"),
)  # append-only: the newest served row says who is champion

notice = Table(
    "notice",
    metadata,
    C("sequence", Big, primary_key=True, autoincrement=False),
    C("event_id", String(40), nullable=False, unique=True),
    C("type", String(40), nullable=False),
    C("subject", String(200), nullable=False),
    C("model", String(64)),
    C("run_id", Big, index=True),
    C("data", JSON, nullable=False),
    C("traceparent", String(64)),
    C("at", Instant, nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    C("id", String(40), primary_key=True),
    C("sequence", ForeignKey("notice.sequence"), nullable=False, index=True),
    C("subscription", String(64), nullable=False),
    C("state", String(20), nullable=False),
    C("due_at", Instant),
    C("lease_until", Instant),
    C("attempts", Integer, nullable=False, default=0),
    C("answer", Integer),
    C("error", Text),
    C("ended_at", Instant),
    Index("ix_delivery_state_due", "state", "due_at"),
)

tidying = Table(
    "tidying",
    metadata,
    C(
        "id", Integer, primary_key=True, autoincrement=False
    ),  # one more than the last: two who begin at once cannot both have it
    C("owner", String(200), nullable=False),
    C("keep", JSON, nullable=False),  # the rules that it went by
    C("lease_until", Instant, nullable=False),
    C("started_at", Instant, nullable=False),
    C("ended_at", Instant),
    C("taken", JSON),
    C("error", Text),
)  # each turn of the janitor, and what it took; an open one with a live lease keeps the others out

worker = Table(
    "worker",
    metadata,
    C("name", String(200), primary_key=True),
    C("compute_class", String(64), nullable=False),
    C("slots", Integer, nullable=False),
    C("busy", Integer, nullable=False),
    C("seen_at", Instant, nullable=False),
)

history = Table(
    "history",
    metadata,
    _id(),
    C("at", Instant, nullable=False),
    C("actor", String(200), nullable=False),
    C("action", String(40), nullable=False),
    C("subject", String(200), nullable=False),
    C("model", String(64)),
    C("reason", Text, nullable=False),
    C("before", JSON(none_as_null=True)),
    C("after", JSON(none_as_null=True)),
    Index("ix_history_model_id", "model", "id"),
)  # append-only: triggers refuse all else

APPEND_ONLY = {
    "sqlite": (
        "CREATE TRIGGER history_update BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
        "CREATE TRIGGER history_delete BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION headrace_history_stays() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'history is only added to'; END $$",
        "CREATE TRIGGER history_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON history EXECUTE FUNCTION headrace_history_stays()",
    ),
}
for _dialect, _statements in APPEND_ONLY.items():
    for _statement in _statements:
        event.listen(history, "after_create", DDL(_statement).execute_if(dialect=_dialect))  # type: ignore[no-untyped-call]

OPEN = (RunState.WAITING, RunState.RETRYING)
