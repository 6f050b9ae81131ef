"""Versions over REST: what each is made of, why it serves or not, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse
from pydantic import Field

from services.registry_bridge.api.models import InPath
from services.registry_bridge.api.runs import Reason, ReleaseName, read_cut
from shared.blobs import Blobs
from shared.cuts import Cut
from shared.errors import Gone, NotFound, Refused
from shared.http import Here, Operator, Paged, Reader, Stores, body, takes
from shared.ledger import Transaction, arrivals, configuration, releases, repeats, retention, runs, scores, versions
from shared.lifecycle import VersionState
from shared.manifest import File, Manifest, check_path
from shared.problems import EVERYWHERE, JSON, WITH_BODY, problems
from shared.values import Strict

router = APIRouter(prefix="/v1/models/{model}/versions", tags=["versions"], responses=EVERYWHERE)

PIECE_BYTES = 1024**2
REQUIREMENTS = "requirements.txt"

Choice = Annotated[str, Path(pattern=r"^(champion|[1-9][0-9]{0,17})$", description="A number, or `champion`.")]


Number = Annotated[int, Path(ge=1, lt=2**63)]


class GivenVerdict(Strict):
    """The decision, why, and against which champion."""

    decision: str
    reasons: tuple[str, ...]
    champion: int | None
    at: datetime


class Lineage(Strict):
    """The data that it was trained on; `arrivals` are those that no earlier trained run had covered, none for a sample."""

    cut: dict[str, Cut]
    cut_digest: str
    arrivals: tuple[int, ...]


class InMlflow(Strict):
    run_id: str
    model_id: str


class Pin(Strict):
    """Somebody relies on the version: it is never tidied away."""

    by: str
    reason: str
    at: datetime


class VersionSummary(Strict):
    """A registered version of a model; `digest` is that of the list of its files."""

    model: str
    version: int
    state: VersionState
    champion: bool
    sample: str | None = Field(
        description="it was trained on so much of the rows only, to build against: it is never promoted"
    )
    run: int
    release: ReleaseName
    digest: str
    registered_at: datetime
    metrics: dict[str, float]
    verdict: GivenVerdict | None
    lineage: Lineage
    mlflow: InMlflow
    pin: Pin | None
    tidied_at: datetime | None = Field(description="when its files were taken away, as `keep` has it")

    @classmethod
    def read(cls, tx: Transaction, row: Any, **more: object) -> Self:
        run, champion = runs.find(tx, row.run_id), versions.champion(tx, row.model)
        release = releases.find(tx, run.release_id)
        return cls(
            model=row.model,
            version=row.number,
            state=VersionState(row.state),
            champion=champion is not None and champion.id == row.id,
            sample=run.sample,
            run=row.run_id,
            release=ReleaseName(name=release.name, commit=release.commit),
            digest=row.digest,
            registered_at=row.registered_at,
            metrics=scores.metrics(tx, row.run_id),
            verdict=_verdict(tx, row),
            lineage=_lineage(tx, run),
            mlflow=InMlflow(run_id=row.mlflow_run, model_id=row.mlflow_model),
            pin=Pin(by=row.pinned_by, reason=row.pin_reason, at=row.pinned_at) if row.pinned_at is not None else None,
            tidied_at=row.tidied_at,
            **more,
        )


class Version(VersionSummary):
    """A version with its files; none once they were tidied away."""

    requirements_file: str | None = Field(description="which of the files holds the locked requirements")
    files: tuple[File, ...]


class PinWanted(Strict):
    """Why the version must stay."""

    reason: Reason


class VersionPage(Strict):
    items: tuple[VersionSummary, ...]
    next: str | None


def _verdict(tx: Transaction, row: Any) -> GivenVerdict | None:
    found = versions.last_verdict(tx, row.id)
    if found is None:
        return None
    return GivenVerdict(
        decision=found.decision, reasons=tuple(found.reasons), champion=found.champion, at=found.judged_at
    )


def _lineage(tx: Transaction, run: Any) -> Lineage:
    answered = arrivals.answered_by(tx, run)
    return Lineage(cut=read_cut(run), cut_digest=run.cut_digest, arrivals=tuple(answered))


def _find(tx: Transaction, model: str, choice: str) -> Any:
    if choice != "champion":
        return versions.find(tx, model, int(choice))
    row = versions.champion(tx, model)
    if row is None:
        raise NotFound(f"{model} has no champion yet; `headrace why {model}` says why")
    return row


def _manifest(blobs: Blobs, digest: str) -> Manifest:
    with blobs.open(digest.removeprefix("sha256:")) as stream:
        return Manifest.model_validate_json(stream.read())


@router.get("", responses=problems(404))
def list_versions(_: Reader, stores: Here, page: Paged, model: InPath) -> VersionPage:
    """Versions of a model, newest first, also of one that is no longer in the configuration."""
    with stores.ledger.read() as tx:
        rows = versions.find_all(tx, model, before=page.before, limit=page.limit + 1)
        if not rows and model not in configuration.in_force(tx).catalog.models:
            raise NotFound(f"there is no model {model!r}; `headrace models` lists those that there are")
        shown, after = page.cut(rows, lambda row: row.number)
        return VersionPage(items=tuple(VersionSummary.read(tx, row) for row in shown), next=after)


@router.get("/{version}", responses=problems(404))
def show_version(_: Reader, stores: Here, model: InPath, version: Choice) -> Version:
    """One version: metrics, verdict, lineage, files."""
    with stores.ledger.read() as tx:
        row = _find(tx, model, version)
    manifest = _manifest(stores.blobs, row.digest) if row.tidied_at is None else Manifest(files=())
    requirements = REQUIREMENTS if manifest.find(REQUIREMENTS) else None
    with stores.ledger.read() as tx:  # by its number: another may be champion by now
        row = versions.find(tx, model, row.number)
        return Version.read(tx, row, files=manifest.files, requirements_file=requirements)


@router.get(
    "/{version}/files/{path:path}",
    responses=problems(404, 410)
    | {200: {"content": {"application/octet-stream": {}}, "description": "The file's bytes"}},
    response_class=StreamingResponse,
)
def download(_: Reader, stores: Here, model: InPath, version: Choice, path: str) -> StreamingResponse:
    """One file of a version; a file that is damaged on our disk breaks off before its end."""
    file = _file(stores, model, version, path)
    headers = {"Content-Length": str(file.size_bytes), "ETag": f'"{file.sha256}"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_pieces(stores.blobs, file), media_type="application/octet-stream", headers=headers)


@router.post(
    "/{version}/pin",
    status_code=202,
    responses=WITH_BODY | problems(404, 409),
    openapi_extra=takes({JSON: PinWanted}),
)
@repeats
def pin(
    caller: Operator,
    stores: Here,
    model: InPath,
    version: Number,
    wanted: Annotated[PinWanted, body(PinWanted)],
) -> VersionSummary:
    """Rely on a version: its files stay until it is unpinned. Pinned again, the newer word counts."""
    with stores.ledger.write() as tx:
        return VersionSummary.read(tx, retention.pin(tx, model, version, caller.name, wanted.reason))


@router.post("/{version}/unpin", status_code=202, responses=problems(404))
@repeats
def unpin(caller: Operator, stores: Here, model: InPath, version: Number) -> VersionSummary:
    """Rely on a version no more."""
    with stores.ledger.write() as tx:
        return VersionSummary.read(tx, retention.unpin(tx, model, version, caller.name))


def _file(stores: Stores, model: str, choice: str, path: str) -> File:
    try:
        check_path(path)
    except ValueError as error:
        raise Refused(str(error)) from None
    with stores.ledger.read() as tx:
        row = _find(tx, model, choice)
    if row.tidied_at is not None:
        raise Gone(
            f"the files of version {row.number} of {model} were tidied away on {row.tidied_at:%Y-%m-%d}; it had been {row.state}"
        )
    file = _manifest(stores.blobs, row.digest).find(path)
    if file is None or not stores.blobs.has(file.sha256):
        raise NotFound(f"version {choice} of {model} has no file {path!r}")
    return file


def _pieces(blobs: Blobs, file: File) -> Iterator[bytes]:
    """Opened by the first piece: an answer that is never sent leaves nothing open."""
    with blobs.open(file.sha256) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece
