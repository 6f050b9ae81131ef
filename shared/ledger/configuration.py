"""The operator's configuration in force: one row with a digest, read by every service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import insert, select

from shared.catalog import Catalog, digest
from shared.errors import ConfigurationError
from shared.ledger.session import Transaction
from shared.ledger.tables import configuration

NAMED = 50  # of what changed; the bodies themselves stay where they are


@dataclass(frozen=True)
class InForce:
    digest: str
    catalog: Catalog


def in_force(tx: Transaction) -> InForce:
    """The newest configuration; raises `ConfigurationError` before the first `apply`."""
    if (kept := tx.kept.get(InForce)) is not None:
        return cast(InForce, kept)
    row = tx.execute(_NEWEST).first()
    if row is None:
        raise ConfigurationError("no configuration is in force: run `python -m stack apply headrace.toml`")
    if (known := _parsed.get(row.digest)) is None:
        body = tx.execute(select(configuration.c.body).where(configuration.c.id == row.id)).scalar_one()
        known = _parsed[row.digest] = InForce(row.digest, Catalog.from_json(body))
    if "configuration" in tx.held:
        tx.kept[InForce] = known
    return known


_NEWEST = select(configuration.c.digest, configuration.c.id).order_by(configuration.c.id.desc()).limit(1)
_parsed: dict[str, InForce] = {}  # by digest, so never stale


def added(tx: Transaction) -> list[str]:
    """Models in force that the configuration before did not have."""
    two = select(configuration.c.body).order_by(configuration.c.id.desc()).limit(2)
    now, *before = [Catalog.from_json(body) for body in tx.execute(two).scalars()]
    return sorted(set(now.models) - {name for one in before for name in one.models})


@dataclass(frozen=True)
class Replaced:
    """What a configuration took the place of, as history tells it: digests, and the names of what changed."""

    before: dict[str, Any] | None
    after: dict[str, Any]


def put(tx: Transaction, new: Catalog, actor: str) -> Replaced | None:
    """Put a configuration in force; None when it is the one in force already. `planning.put_in_force` is the whole step."""
    tx.lock("configuration")  # whoever plans by the old one has committed, or waits
    wanted, body = digest(new), new.to_json()
    newest = tx.execute(select(configuration).order_by(configuration.c.id.desc()).limit(1)).first()
    if newest is not None and newest.digest == wanted:
        return None
    tx.kept.pop(InForce, None)
    tx.execute(insert(configuration).values(digest=wanted, body=body, actor=actor, applied_at=tx.now))
    old = json.loads(newest.body) if newest is not None else {}
    changed = sorted(_changed(old, json.loads(body)))
    named = [*changed[:NAMED], *([f"and {len(changed) - NAMED} more"] if len(changed) > NAMED else [])]
    before = {"digest": newest.digest} if newest is not None else None
    return Replaced(before, {"digest": wanted, "changed": named})


def _changed(old: Any, new: Any, path: str = "", depth: int = 3) -> Iterator[str]:
    """Where two configurations differ: `models.delays.policy`. Names only, whatever the values are."""
    if old == new:
        return
    if not (isinstance(old, dict) and isinstance(new, dict)) or not depth:
        yield path
        return
    for key in old.keys() | new.keys():
        yield from _changed(old.get(key), new.get(key), f"{path}.{key}" if path else key, depth - 1)
