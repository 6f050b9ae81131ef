"""A service on a machine of its own: with Redis, the ledger and the stores in common with the stack, and no file system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.system.product import ROOT, SECRET, Product


class Machine:
    """One service with a state directory, a home and an environment of its own; what it is told is what the documentation says."""

    def __init__(self, product: Product, root: Path, name: str, service: str = "trainer") -> None:
        self.product, self.root, self.name, self.service = product, root / name, name, service
        self.root.mkdir(mode=0o700)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, compute_class: str = "remote") -> None:
        settings = json.loads((self.product.state / "settings.json").read_text())
        shared = {
            f"HEADRACE_{key.upper()}": settings[key]
            for key in ("ledger_url", "redis_url", "blobs_url", "logs_url", "mlflow_url")
        }
        own = {
            "HEADRACE_STATE_DIR": str(self.root / "state"),
            "HEADRACE_COMPUTE_CLASS": compute_class,
            "HEADRACE_PROCESS": self.name,
            "HEADRACE_LEASE_S": "6",
            "HEADRACE_HEARTBEAT_S": "2",
            "HOME": str(self.root),
            "TMPDIR": str(self.root),
            "HOLD_FILES": str(self.product.held),
            "HOOK_SECRET": SECRET,
        }
        kept = {
            key: value for key, value in os.environ.items() if key == "PATH" or key.startswith(("SSL_", "PIP_", "UV_"))
        }
        aws = {key: value for key, value in self.product.elsewhere.items() if key.startswith("AWS_")}
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.service}"],
                cwd=ROOT,
                env=kept | shared | own | aws,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(30) == 0, (self.root / "log").read_text()[-3000:]

    @property
    def environments(self) -> list[Path]:
        return [path.parent for path in self.root.glob("state/trainer/environments/*/headrace-environment.json")]
