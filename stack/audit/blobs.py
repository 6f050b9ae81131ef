"""The blob store held against the ledger: what a live row names is there, whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shared.audit import Sheet
from shared.blobs import BlobDamaged, Blobs
from shared.errors import HeadraceError, NotFound, Unavailable
from shared.ledger import Ledger, retention
from shared.manifest import File, Manifest

BLOBS = "blobs"
PAGE = 200
AT_ONCE = 8
WINDOW = 200_000
"""So many blobs are looked for in one listing of the store: 40 MB of memory, however many there are in all."""
_BACK = "`headrace retrain {model}` makes a new version; restore the blob store from its copy if the old one is needed"


@dataclass(frozen=True)
class Named:
    """A row that names a manifest."""

    digest: str
    whose: str
    ids: tuple[tuple[str, int], ...]


@dataclass
class BlobAudit:
    """`deep` reads every byte and compares it with its digest; else only what there is and how large it is."""

    ledger: Ledger
    blobs: Blobs
    sheet: Sheet
    deep: bool = False
    _sizes: dict[bytes, int] = field(default_factory=dict)
    _window: list[Named] = field(default_factory=list)

    def run(self) -> None:
        self.sheet.looked(BLOBS, "manifests", 0)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="audit") as pool:
            for page in self._pages():
                for named, manifest in zip(page, pool.map(self._read, page), strict=True):
                    if manifest is None:
                        continue
                    self._window.append(named)
                    self._sizes.update((bytes.fromhex(file.sha256), file.size_bytes) for file in manifest.files)
                self.sheet.looked(BLOBS, "manifests", len(page))
                if len(self._sizes) >= WINDOW:
                    self._close_window(pool)
            self._close_window(pool)

    def _pages(self) -> Iterator[list[Named]]:
        after = (0, 0)
        while True:
            with self.ledger.read() as tx:
                runs, versions = retention.named(tx, after, PAGE)
            page = [Named(row.bundle, f"the bundle of run {row.id}", (("run", row.id),)) for row in runs]
            page += [
                Named(row.digest, f"the version of run {row.run_id}", (("run", row.run_id), ("version_row", row.id)))
                for row in versions
            ]
            yield page
            if len(runs) < PAGE and len(versions) < PAGE:
                return
            after = (runs[-1].id if runs else after[0], versions[-1].id if versions else after[1])

    def _read(self, named: Named) -> Manifest | None:
        try:
            with self.blobs.open(named.digest.removeprefix("sha256:")) as stream:
                return Manifest.model_validate_json(stream.read())
        except Unavailable:
            raise
        except (HeadraceError, ValueError, OSError) as error:
            self._tell(
                named,
                "manifest",
                f"the list of files of {named.whose[4:]} ({named.digest}) cannot be read: {str(error)[:300]}",
            )
            return None

    def _close_window(self, pool: ThreadPoolExecutor) -> None:
        """Tick off what the store lists; what is left was asked for one by one, and then looked up in the manifests again to say whose it is."""
        wanted, self._sizes = self._sizes, {}
        window, self._window = self._window, []
        self.sheet.looked(BLOBS, "files", len(wanted))
        wrong = {}
        missing = set(wanted)
        for sha256, _, size_bytes in self.blobs.stored():
            name = bytes.fromhex(sha256)
            if name in missing:
                missing.remove(name)
                if wanted[name] != size_bytes:
                    wrong[name] = f"has {size_bytes} bytes, not {wanted[name]}"
        wrong |= {name: "is not in the blob store" for name in missing if not self.blobs.has(name.hex())}
        if self.deep:
            for name, fault in zip(wanted, pool.map(self._damage, wanted), strict=True):
                if fault is not None:
                    wrong.setdefault(name, fault)
        if wrong:
            self._attribute(window, wrong)

    def _damage(self, name: bytes) -> str | None:
        try:
            with self.blobs.open(name.hex()) as stream:
                while stream.read(1024**2):
                    pass
        except (BlobDamaged, NotFound) as error:
            return error.message
        return None

    def _attribute(self, window: Iterable[Named], wrong: dict[bytes, str]) -> None:
        for named in window:
            for file in self._files(named):
                if (fault := wrong.get(bytes.fromhex(file.sha256))) is not None:
                    self._tell(
                        named, "file", f"{file.path} of {named.whose[4:]} ({file.sha256}) {fault}", sha256=file.sha256
                    )

    def _files(self, named: Named) -> tuple[File, ...]:
        manifest = self._read(named)
        return manifest.files if manifest is not None else ()

    def _tell(self, named: Named, kind: str, what: str, **ids: str) -> None:
        self.sheet.violated(BLOBS, kind, what, _BACK.format(model="its model"), **dict(named.ids), **ids)
