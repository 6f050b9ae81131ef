"""Tokens of the REST interface: kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from enum import StrEnum

from sqlalchemy import delete, insert, select

from shared.errors import Refused
from shared.ledger import history
from shared.ledger.session import Transaction
from shared.ledger.tables import token
from shared.ledger.transitions import transition

SHORTEST = 32  # characters of a token that somebody else made up: a hash of less could be guessed


class Scope(StrEnum):
    SUBMIT = "submit"  # report arrivals
    READ = "read"
    OPERATE = "operate"  # retrain, cancel, promote, roll back


@transition
def create(tx: Transaction, name: str, scopes: tuple[Scope, ...], by: str = history.HEADRACE) -> str:
    """A new token, told once; an older one of that name no longer counts.

    token: none | valid → valid
    By: the operator, on the command line
    Fence: name
    Again: the newer one counts
    """
    secret = "hr_" + secrets.token_urlsafe(32)
    register(tx, name, scopes, secret, by)
    return secret


@transition
def register(tx: Transaction, name: str, scopes: tuple[Scope, ...], secret: str, by: str = history.HEADRACE) -> None:
    """Let this token count from now on, and no older one of that name. Raises `Refused` for one too short.

    token: none | valid → valid
    By: the operator, on the command line
    Fence: name
    Again: changes nothing
    """
    if not scopes:
        raise Refused("a token needs at least one scope: submit, read or operate")
    if len(secret) < SHORTEST:
        raise Refused(f"the token {name!r} has {len(secret)} characters: {SHORTEST} random ones are the least")
    tx.lock(f"token {name}")
    wanted, old = [str(scope) for scope in scopes], _scopes(tx, name)
    same = select(token.c.name).where(token.c.name == name, token.c.sha256 == _hash(secret))
    if old == wanted and tx.execute(same).first() is not None:
        return
    tx.execute(delete(token).where(token.c.name == name))
    tx.execute(insert(token).values(name=name, sha256=_hash(secret), scopes=wanted, created_at=tx.now))
    before = {"scopes": old} if old is not None else None
    history.note(tx, "create token", f"token {name}", by, before=before, after={"scopes": wanted})


def _scopes(tx: Transaction, name: str) -> list[str] | None:
    scopes: list[str] | None = tx.execute(select(token.c.scopes).where(token.c.name == name)).scalar()
    return scopes


@transition
def revoke(tx: Transaction, name: str, by: str = history.HEADRACE) -> bool:
    """The token of this name no longer counts; False if there is none.

    token: valid → none
    By: the operator, on the command line
    Fence: name
    Again: False
    """
    scopes = _scopes(tx, name)
    if scopes is None:
        return False
    tx.execute(delete(token).where(token.c.name == name))
    history.note(tx, "revoke token", f"token {name}", by, before={"scopes": scopes})
    return True


def find(tx: Transaction, secret: str) -> tuple[str, frozenset[Scope]] | None:
    """Name and scopes of the token; every known hash is compared, so that the time tells nothing."""
    presented, found = _hash(secret), None
    for row in tx.execute(select(token)):
        if hmac.compare_digest(row.sha256, presented):
            found = (row.name, frozenset(Scope(scope) for scope in row.scopes))
    return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
