"""Addresses of databases: which driver they mean."""

from __future__ import annotations

from sqlalchemy.engine import URL, make_url


def driver_url(url: str) -> URL:
    """The URL with the driver that we carry: `postgresql://` and `postgres://` mean psycopg 3. Raises `ArgumentError`, which quotes the URL."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed
