"""Releases of models: what the watcher saw in their repositories, and which one is in force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import bindparam, insert, select, update

from shared.declaration import Declaration
from shared.errors import NotFound
from shared.ledger import deliveries
from shared.ledger.session import Transaction
from shared.ledger.tables import model, release
from shared.ledger.transitions import transition
from shared.notices import NoticeType


@dataclass(frozen=True)
class Release:
    id: int
    model: str
    name: str
    commit: str
    declaration: Declaration
    seen_at: datetime
    content: str | None = None  # unknown of one that was read by an earlier version
    moved_from: str | None = None  # the commit that its tag was on before


def describe(release: Release) -> str:
    """Why it is a reason to train."""
    if release.moved_from is not None:
        return f"tag {release.name} was moved from {release.moved_from[:12]} to {release.commit[:12]}"
    return f"new release {release.name}"


def same(one: Release, other: Release) -> bool:
    """Whether a training of one would be a training of the other, given the same data."""
    if one.declaration.datasets != other.declaration.datasets:
        return False
    if one.content is None or other.content is None:
        return one.commit == other.commit
    return one.content == other.content


def adopted(
    tx: Transaction, model_name: str, name: str, commit: str, declared: Declaration, content: str | None, *, tag: bool
) -> Release | None:
    """Put a valid release in force; None when it is the one in force already. `planning.adopt` is the whole step."""
    now = in_force(tx, model_name)
    if now is not None and (now.name, now.commit) == (name, commit) and _agree(now.content, content):
        # also when a newer one that was refused is gone again
        tx.execute(update(model).where(model.c.name == model_name).values(seen_id=now.id))
        return None
    values = {"declaration": declared.model_dump_json(), "content": content}
    id = _store(tx, model_name, name, commit, tag=tag, **values)
    tx.execute(update(model).where(model.c.name == model_name).values(release_id=id, seen_id=id, error=None))
    tx.kept.pop((_IN_FORCE, model_name), None)
    return find(tx, id)


def _agree(known: str | None, content: str | None) -> bool:
    """The same commit holds something else only where the operator has named another directory of it."""
    return known is None or content is None or known == content


@transition
def refused(tx: Transaction, model_name: str, name: str, commit: str, why: str, *, tag: bool = False) -> None:
    """Note an invalid release with its reason; the release before it stays in force.

    release: none → refused
    By: the watcher
    Fence: name, commit and reason
    Again: changes nothing
    """
    tx.hold_models(model_name)
    row = seen(tx, model_name)
    if row is not None and (row.name, row.commit, row.refusal) == (name, commit, why):
        return
    id = _store(tx, model_name, name, commit, tag=tag, refusal=why)
    tx.execute(update(model).where(model.c.name == model_name).values(seen_id=id))
    data = {"model": model_name, "release": name, "commit": commit, "reason": why}
    deliveries.tell(tx, NoticeType.RELEASE_REFUSED, model_name, model_name, data)


def _store(tx: Transaction, model_name: str, name: str, commit: str, *, tag: bool, **values: Any) -> int:
    ensure(tx, model_name)
    values |= {"model": model_name, "name": name, "commit": commit, "seen_at": tx.now}
    values["moved_from"] = _moved_from(tx, model_name, name, commit) if tag else None
    return int(tx.execute(insert(release).values(**values)).inserted_primary_key[0])


def _moved_from(tx: Transaction, model_name: str, name: str, commit: str) -> str | None:
    """Where a tag of this name was when it was seen last, if that was another commit."""
    same_name = select(release).where(release.c.model == model_name, release.c.name == name)
    row = tx.execute(same_name.order_by(release.c.id.desc()).limit(1)).first()
    if row is None:
        return None
    if row.commit == commit:  # a refused one that is judged again was told of by its refusal only
        return cast("str | None", row.moved_from) if row.refusal is not None else None
    return str(row.commit)


def ensure(tx: Transaction, model_name: str) -> None:
    tx.hold_models(model_name)
    if tx.execute(select(model.c.name).where(model.c.name == model_name)).first() is None:
        tx.execute(insert(model).values(name=model_name))


@transition
def looked(tx: Transaction, model_name: str, error: str | None) -> None:
    """Note that the repository was looked at, and what went wrong.

    model: known → looked at
    By: the watcher
    Fence: none; it only tells
    Again: the newer word stays
    """
    ensure(tx, model_name)
    tx.execute(update(model).where(model.c.name == model_name).values(looked_at=tx.now, error=error))


def seen(tx: Transaction, model_name: str) -> Any:
    """The newest release of a model, valid or not, as a row; None before the first."""
    return tx.execute(
        select(release).join(model, model.c.seen_id == release.c.id).where(model.c.name == model_name)
    ).first()


def in_force(tx: Transaction, model_name: str) -> Release | None:
    """The newest valid release."""
    return all_in_force(tx, [model_name]).get(model_name)


def all_in_force(tx: Transaction, models: Sequence[str]) -> dict[str, Release]:
    """The newest valid release of each model that has one. Looked up once for a model that is held, until another comes."""
    unknown = [name for name in models if (_IN_FORCE, name) not in tx.kept]
    rows = tx.execute(_IN_FORCE, {"models": unknown}) if unknown else ()
    found = {row.model: _release(row) for row in rows}
    tx.kept.update({(Release, one.id): one for one in found.values()})
    tx.kept.update({(_IN_FORCE, name): found.get(name) for name in unknown if tx.holds(f"model {name}")})
    every = {name: found.get(name) or tx.kept.get((_IN_FORCE, name)) for name in models}
    return {name: one for name, one in every.items() if one is not None}


_IN_FORCE = (
    select(release)
    .join(model, model.c.release_id == release.c.id)
    .where(model.c.name.in_(bindparam("models", expanding=True)))
)


def find(tx: Transaction, id: int) -> Release:
    """A valid release by its id; raises `NotFound`."""
    if (kept := tx.kept.get((Release, id))) is not None:
        return cast(Release, kept)
    row = tx.execute(select(release).where(release.c.id == id, release.c.refusal.is_(None))).first()
    if row is None:
        raise NotFound(f"there is no valid release {id}")
    found = tx.kept[Release, id] = _release(row)
    return found


def looks(tx: Transaction) -> dict[str, Any]:
    """When each repository was looked at and with what error, by model."""
    return {row.name: row for row in tx.execute(select(model))}


def _release(row: Any) -> Release:
    declared = _declared(row.declaration)
    return Release(row.id, row.model, row.name, row.commit, declared, row.seen_at, row.content, row.moved_from)


@lru_cache(1024)
def _declared(text: str) -> Declaration:
    return Declaration.model_validate_json(text)
