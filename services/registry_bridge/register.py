"""From a trained run to a registered version: exactly one, whatever crashes between the steps (I6)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog

from services.registry_bridge.compose import compose
from services.registry_bridge.registration import Registered, Registration
from shared.blobs import Blobs, materialise, store_tree
from shared.errors import Fenced, HeadraceError, Unavailable
from shared.ledger import Ledger, arrivals, attempts, releases, runs, versions
from shared.manifest import Manifest, read_tree

LEASE = timedelta(seconds=30)
PAUSE = timedelta(seconds=2)
LONG_PAUSE = timedelta(minutes=1)
log = structlog.get_logger()


class Registry(Protocol):
    """A model registry. `register` may be repeated, and answers with the version that is there; it calls `fence` before each thing that it
    makes. `set_champion` and `remove` are idempotent. All raise `Unavailable` where trying again may help."""

    def register(self, registration: Registration, *, fence: Any) -> Registered: ...
    def champion(self, model: str) -> int | None: ...
    def set_champion(self, model: str, version: int) -> None: ...
    def remove(self, model: str, version: int, mlflow_run: str, model_id: str) -> None: ...


@dataclass(frozen=True)
class Registrar:
    """Registers trained runs; `home` is its scratch."""

    ledger: Ledger
    registry: Registry
    blobs: Blobs
    home: Path

    def register(self, run: int) -> bool:
        """Register one run; False if another does, or it is done. What goes wrong is noted with the run and tried again later."""
        with self.ledger.write() as tx:
            token = versions.begin_registration(tx, run, LEASE)
        if token is None:
            return False
        scratch = self.home / f"{run}-{token}"
        try:
            with self._kept(run, token):
                self._register(run, token, scratch)
        except Exception as error:
            log.warning("registration_failed", run=run, error=str(error), exc_info=not isinstance(error, HeadraceError))
            with self.ledger.write() as tx:
                pause = PAUSE if isinstance(error, Unavailable) else LONG_PAUSE
                versions.registration_failed(tx, run, token, str(error) or type(error).__name__, pause)
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def _register(self, run: int, token: int, scratch: Path) -> None:
        registration = self._describe(run, token, scratch)
        made_of = self._compose(registration)
        found = self.registry.register(registration, fence=self._fence(run, token))
        with self.ledger.write() as tx:
            versions.check_registration(tx, run, token)
            versions.registered(tx, run, found.version, made_of.digest, found.mlflow_run_id, found.model_id)
        log.info("version_registered", run=run, model=registration.model, version=found.version, digest=made_of.digest)

    def _fence(self, run: int, token: int) -> Callable[[], None]:
        """Raises `Fenced` when another bridge has taken over."""

        def fence() -> None:
            with self.ledger.read() as tx:
                versions.check_registration(tx, run, token)

        return fence

    @contextmanager
    def _kept(self, run: int, token: int) -> Iterator[None]:
        """The lease is kept while the block lasts, however long one file takes to upload; a dead bridge's is free in seconds."""
        ended = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(run, token, ended), name=f"keep {run}", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()

    def _keep(self, run: int, token: int, ended: threading.Event) -> None:
        while not ended.wait(LEASE.total_seconds() / 3):
            try:
                with self.ledger.write() as tx:
                    versions.keep_registration(tx, run, token, LEASE)
            except Fenced:
                return  # the registration finds out by itself, at its next fence
            except HeadraceError as error:
                log.warning("registration_not_kept", run=run, error=error.message)

    def _compose(self, registration: Registration) -> Manifest:
        """The model directory that MLflow gets and consumers download, kept in the blob store under its manifest's digest."""
        saved = json.loads((registration.bundle_dir / "model" / "headrace.json").read_bytes())
        compose(
            registration.bundle_dir,
            registration.composed_dir,
            model=registration.model,
            run=registration.run,
            created_at=registration.ended_at,
            python=str(saved["python"]),
            sample=registration.sample,
        )
        manifest = read_tree(registration.composed_dir)
        store_tree(self.blobs, registration.composed_dir, manifest)
        self.blobs.put_bytes(manifest.canonical())
        return manifest

    def _describe(self, run: int, token: int, scratch: Path) -> Registration:
        with self.ledger.read() as tx:
            row = runs.find(tx, run)
            release = releases.find(tx, row.release_id)
            covered = arrivals.answered_by(tx, row)
            seconds = [one.seconds for one in attempts.of_run(tx, run) if one.outcome == "trained"]
        bundle = self._fetch(row.bundle, scratch / "bundle")
        measured = json.loads((bundle / "metrics.json").read_bytes())
        parameters = _read(bundle / "parameters.json") or dict(release.declaration.parameters)
        times = {f"headrace.seconds.{name}": value for name, value in (seconds[-1] or {}).items()} if seconds else {}
        return Registration(
            model=row.model,
            run=run,
            sample=row.sample,
            token=token,
            bundle=row.bundle,
            release=release.name,
            commit=release.commit,
            cut=row.cut,
            cut_digest=row.cut_digest,
            arrivals=covered,
            parameters=parameters,
            metrics={**measured["metrics"], **times},
            history=measured.get("history", []),
            bundle_dir=bundle,
            composed_dir=scratch / "composed",
            started_at=row.started_at,
            ended_at=row.finished_at,
        )

    def _fetch(self, digest: str, into: Path) -> Path:
        with self.blobs.open(digest.removeprefix("sha256:")) as stream:
            manifest = Manifest.model_validate_json(stream.read())
        into.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        materialise(self.blobs, manifest, into)
        return into


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
