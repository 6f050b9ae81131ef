"""The operator's configuration in force: one row with a digest, read by every service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sqlalchemy import insert, select

from shared.catalog import Catalog, digest
from shared.errors import ConfigurationError
from shared.ledger.session import Transaction
from shared.ledger.tables import configuration


@dataclass(frozen=True)
class InForce:
    digest: str
    catalog: Catalog


def in_force(tx: Transaction) -> InForce:
    """The newest configuration; raises `ConfigurationError` before the first `apply`."""
    if (kept := tx.kept.get(InForce)) is not None:
        return cast(InForce, kept)
    newest = select(configuration.c.digest, configuration.c.id).order_by(configuration.c.id.desc()).limit(1)
    row = tx.execute(newest).first()
    if row is None:
        raise ConfigurationError("no configuration is in force: run `python -m stack apply headrace.toml`")
    if (known := _parsed.get(row.digest)) is None:
        body = tx.execute(select(configuration.c.body).where(configuration.c.id == row.id)).scalar_one()
        known = _parsed[row.digest] = InForce(row.digest, Catalog.from_json(body))
    if "configuration" in tx.held:
        tx.kept[InForce] = known
    return known


_parsed: dict[str, InForce] = {}  # by digest, so never stale


def added(tx: Transaction) -> list[str]:
    """Models in force that the configuration before did not have."""
    two = select(configuration.c.body).order_by(configuration.c.id.desc()).limit(2)
    now, *before = [Catalog.from_json(body) for body in tx.execute(two).scalars()]
    return sorted(set(now.models) - {name for one in before for name in one.models})


def put(tx: Transaction, new: Catalog, actor: str) -> bool:
    """Put a configuration in force; False when it is the one in force already. The caller replans in the same transaction."""
    tx.lock("configuration")  # whoever plans by the old one has committed, or waits
    wanted = digest(new)
    newest = tx.execute(select(configuration.c.digest).order_by(configuration.c.id.desc()).limit(1)).scalar()
    if newest == wanted:
        return False
    tx.kept.pop(InForce, None)
    tx.execute(insert(configuration).values(digest=wanted, body=new.to_json(), actor=actor, applied_at=tx.now))
    return True
