"""Reports over the Redis stream: any producer adds them to `headrace:arrivals`, the watchers share them as one consumer group.

What one read brings is one commit of the ledger, and after that it is acknowledged and removed in one MULTI. So an entry is taken at least once, and
its (source, id) makes it one arrival; and the stream holds only what nobody has taken yet.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError
from redis.retry import Retry

from shared.arrivals import Report, parse_cloudevent, parse_json
from shared.datasets import Stream
from shared.errors import HeadraceError, Permanent, Refused, Unavailable
from shared.ledger import Ledger, arrivals, configuration, datasets, rejections, repeats
from shared.ledger.arrivals import Receipt
from shared.ledger.rejections import Rejected
from shared.ledger.reports import Sent
from shared.points import point

ARRIVALS, REJECTED, GROUP, FIELD = "headrace:arrivals", "headrace:rejected", "headrace", b"event"
MAX_EVENT_BYTES = 1024**2
REJECTED_KEPT, REJECTED_BYTES = 10_000, 64 * 1024  # so many entries, and so much of each: more is never an event
BATCH = 50
BLOCK_S = 0.5  # a stop waits so long
ANSWER_S, CONNECT_S = (
    3.0,
    2.0,
)  # a half-open connection is noticed, instead of listened to for ever (docs/decisions.md, 1)
FORGET = timedelta(hours=1)
DEFECTS = 3
_GROUP, _READ, _CLAIM, _SETTLE = (point(f"stream {what}", __name__) for what in ("group", "read", "claim", "settle"))
_GONE = ("NOGROUP", "UNBLOCKED")  # FLUSHALL took the group, also from under a blocked read

log = structlog.get_logger()
Entry = tuple[str, Mapping[bytes, bytes]]


def read_entry(fields: Mapping[bytes, bytes]) -> Report:
    """The report in an entry; raises `Refused` with what is wrong, however hostile it is. Fields beside `event` are passed over."""
    if not fields:
        raise Refused(
            "it was cut from the stream (MAXLEN, XTRIM) before it was read; give the stream room for an outage"
        )
    event = fields.get(FIELD)
    if event is None:
        raise Refused("the entry has no field `event`; send XADD headrace:arrivals '*' event '<CloudEvent in JSON>'")
    if len(event) > MAX_EVENT_BYTES:
        raise Refused(
            f"an event has at most {MAX_EVENT_BYTES:,} bytes, and this one {len(event):,}; send ranges, not rows"
        )
    value = parse_json(event)
    if not isinstance(value, dict):
        raise Refused("the event is not a JSON object; send a CloudEvent")
    return parse_cloudevent(value)


class StreamReader:
    """The body of the loop that takes the entries: what is left with this consumer first, then the new ones, in the stream's order.

    Whatever fails for a while (broker, ledger) is raised and the entry tried again: nothing overtakes it here, and nothing is lost. What cannot be
    read is put aside at once, and never holds up the next.
    """

    def __init__(self, ledger: Ledger, redis_url: str, consumer: str, lease: timedelta) -> None:
        self._ledger, self._url, self._consumer, self._lease = ledger, redis_url, consumer, lease
        self._client: Any = None
        self._behind = (
            True  # entries may be left with us: by a step that failed, a reply that was lost, or a namesake before
        )
        self._tend_at = 0.0
        self._said: str | None = ""
        self._defects: Counter[str] = Counter()

    def step(self) -> None:
        """Take what there is, or wait for something to come for `BLOCK_S`."""
        try:
            self._step()
        except RedisError as error:
            if str(error).startswith(_GONE):
                return self._create_group()
            away = Unavailable(
                f"the broker does not answer ({error}); events wait there, and are taken when it is back"
            )
            self._say(away.message)
            raise away from error
        self._say(None)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def _step(self) -> None:
        if time.monotonic() >= self._tend_at:
            self._take_over()
            self._forget_consumers()
            self._tend_at = time.monotonic() + self._lease.total_seconds() / 3
        behind, self._behind = self._behind, True
        left = self._read("0") if behind else []
        self._take(left or self._read(">"))
        self._behind = bool(left)  # there may be more of them

    def _connected(self) -> Any:
        if self._client is None:
            never = Retry(NoBackoff(), 0)  # its own retry would read on, past the entries of the reply that was lost
            limits = {"socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, "socket_keepalive": True}
            self._client = Redis.from_url(self._url, protocol=2, retry=never, **limits)
        return self._client

    def _create_group(self) -> None:
        """From the first entry on: those that came before us are for us too."""
        try:
            with _GROUP:
                self._connected().xgroup_create(ARRIVALS, GROUP, id="0", mkstream=True)
        except RedisError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _read(self, after: str) -> list[Entry]:
        wait = {"block": int(BLOCK_S * 1000)} if after == ">" else {}
        with _READ:
            found = self._connected().xreadgroup(GROUP, self._consumer, {ARRIVALS: after}, count=BATCH, **wait)
        return [(id.decode(), fields or {}) for id, fields in found[0][1]] if found else []

    def _take(self, entries: Sequence[Entry]) -> None:
        """All in one commit, and settled together; what cannot be taken is put aside after that."""
        if not entries:
            return
        try:
            refused = self._receive(entries)
        except HeadraceError:
            raise
        except Exception as error:
            if len(entries) > 1:
                return self._take_singly(entries)
            # A defect of ours: told by the loop, tried again, and then out of the way of the others.
            ((entry, _),) = entries
            self._defects[entry] += 1
            if self._defects[entry] < DEFECTS:
                raise
            refused = {entry: f"a defect of ours ({error!r}); the watcher's log has it, please report it"}
        if taken := [entry for entry, _ in entries if entry not in refused]:
            self._settle(taken)
        for entry, fields in entries:
            if entry in refused:
                self._reject(entry, fields, refused[entry])
            self._defects.pop(entry, None)

    def _take_singly(self, entries: Sequence[Entry]) -> None:
        """Whichever it is that meets a defect of ours shows now, and those before it are taken."""
        for one in entries:
            self._take([one])

    def _receive(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Commit what they say; why some of them say nothing that counts."""
        read = {entry: _read(fields) for entry, fields in entries}
        sent = {entry: Sent(report, "stream") for entry, report in read.items() if isinstance(report, Report)}
        answers = dict(zip(sent, self._commit(list(sent.values())) if sent else (), strict=True))
        for entry, one in answers.items():
            if isinstance(one, Receipt):
                dataset = sent[entry].report.dataset
                log.info("event.received", dataset=dataset, arrival=one.arrival, repeated=one.repeated)
        return {entry: one.message for entry, one in (read | answers).items() if isinstance(one, Permanent)}

    @repeats
    def _commit(self, sent: Sequence[Sent]) -> list[Receipt | Permanent]:
        with self._ledger.write() as tx:
            return arrivals.receive_all(tx, sent)

    def _reject(self, entry: str, fields: Mapping[bytes, bytes], reason: str) -> None:
        event = fields.get(FIELD, _shown(fields))[:REJECTED_BYTES]
        self._note(Rejected(entry, _sender(event), reason, event.decode(errors="replace")))
        self._settle([entry], {"entry": entry, "reason": reason, "event": event})
        log.warning("event.rejected", entry=entry, why=reason)

    @repeats
    def _note(self, told: Rejected) -> None:
        with self._ledger.write() as tx:
            rejections.note(tx, told)

    def _settle(self, entries: Sequence[str], put_aside: dict[str, Any] | None = None) -> None:
        """After the commit. A crash in between brings them again, which changes nothing then."""
        with self._connected().pipeline(transaction=True) as together:
            if put_aside is not None:
                together.xadd(REJECTED, put_aside, maxlen=REJECTED_KEPT, approximate=True)
            together.xack(ARRIVALS, GROUP, *entries)
            together.xdel(ARRIVALS, *entries)
            try:
                with _SETTLE:
                    together.execute()
            except OutOfMemoryError:
                if put_aside is None:
                    raise
                # A full broker must not make one bad entry hold up the others; the ledger has its reason and its beginning.
                log.warning(
                    "event.not_put_aside", entry=entries[0], why=f"the broker is full: nothing fits into {REJECTED}"
                )
                return self._settle(entries)

    def _take_over(self) -> None:
        """Entries that another consumer has held for longer than the lease: it is dead, or as good as dead."""
        start, idle_ms = b"0-0", int(self._lease.total_seconds() * 1000)
        while True:
            client = self._connected()
            with _CLAIM:
                start, claimed, *gone = client.xautoclaim(ARRIVALS, GROUP, self._consumer, idle_ms, start, count=BATCH)
            # What was cut away meanwhile; Redis 6 lists it among the claimed.
            self._take([(id.decode(), {}) for id in (gone[0] if gone else [])])
            if claimed:
                self._behind = True
                log.info("events.taken_over", entries=len(claimed))
            if start == b"0-0":
                return

    def _forget_consumers(self) -> None:
        """Each watcher process is a consumer of its own name; those that are long gone and hold nothing are dropped."""
        for one in self._connected().xinfo_consumers(ARRIVALS, GROUP):
            idle = timedelta(milliseconds=one["idle"])
            if not one["pending"] and idle > FORGET:
                self._connected().xgroup_delconsumer(ARRIVALS, GROUP, one["name"])

    @repeats
    def _say(self, error: str | None) -> None:
        """Show with the stream's datasets whether events are heard, when that changes."""
        if error == self._said:
            return
        with self._ledger.write() as tx:
            catalog = configuration.in_force(tx).catalog
            names = [name for name, one in catalog.datasets.items() if isinstance(one.source, Stream)]
            tx.lock(*(f"dataset {name}" for name in names))
            for name in names:
                datasets.ensure(tx, name)
                datasets.looked(tx, name, error)
        self._said = error


def _read(fields: Mapping[bytes, bytes]) -> Report | Refused:
    try:
        return read_entry(fields)
    except Refused as error:
        return error


def _shown(fields: Mapping[bytes, bytes]) -> bytes:
    """An entry without an event, as JSON."""
    text = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    return json.dumps(text).encode() if text else b""


def _sender(event: bytes) -> str | None:
    """The `source` of an event that breaks a rule, if it says one."""
    try:
        value = parse_json(event)
    except Refused:
        return None
    source = value.get("source") if isinstance(value, dict) else None
    return source if isinstance(source, str) else None
