"""Each process starts with the packages of its own group alone: all others of this environment are hidden from it while it is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
ON_POSTGRES = "from shared.ledger import Ledger; Ledger('postgresql://user@host/ledger').close()"
ARMED = {f"HEADRACE_{name}": "1" for name in ("POINTS", "ARM", "STRIKE", "CRASH")}
UNARMED = "import shared.points as points; assert points._strike is None; print(*points.POINTS, sep='\\n')"
HIDE = """\
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in hidden:
            raise ModuleNotFoundError(f"{name} is not of this group", name=name)
hidden = set(sys.argv[1].split())
sys.meta_path.insert(0, Hidden())
"""


@cache
def packages(group: str) -> frozenset[str]:
    options = ["--frozen", "--no-default-groups", "--no-hashes", "--no-annotate", "--no-header", "--only-group", group]
    said = subprocess.run([str(UV), "export", *options], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {re.split(r"[=\s;]", line)[0] for line in said.splitlines()}
    return frozenset(
        {name for name in names if name != "-e"} | ({"headrace"} if "-e ./clients/python" in said else set())
    )


def hidden_from(group: str) -> str:
    """The modules that come with no package of the group."""
    has = {name.replace("-", "_").lower() for name in packages(group)}
    return " ".join(
        module
        for module, owners in packages_distributions().items()
        if not any(re.sub(r"[-.]", "_", owner).lower() in has for owner in owners)
    )


@pytest.mark.parametrize(
    ("group", "starts"),
    [
        ("api", f"import stack.api, stack.prepare, stack.serve; stack.api.create_app(); {ON_POSTGRES}"),
        ("watcher", f"import services.ingest_watcher.app; {ON_POSTGRES}"),
        ("trainer", f"import services.trainer.app; from uv import find_uv_bin; find_uv_bin(); {ON_POSTGRES}"),
        ("bridge", f"import services.registry_bridge.app; {ON_POSTGRES}"),
        ("flower", "import shared.celery_app, flower.command"),
    ],
)
def test_a_process_needs_no_more_than_its_group_and_no_variable_arms_its_points(group: str, starts: str) -> None:
    argv = [sys.executable, "-W", "ignore", "-c", f"{HIDE}{starts}\n{UNARMED}", hidden_from(group)]
    told = {**os.environ, **ARMED, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=told, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert group == "flower" or len(done.stdout.splitlines()) > 10, "it has points"


def test_only_the_server_has_the_whole_of_mlflow() -> None:
    processes = ("api", "watcher", "trainer", "bridge", "flower", "s3", "mlflow")
    assert [group for group in processes if "mlflow" in packages(group)] == ["mlflow"]
    assert [group for group in processes if "mlflow-skinny" in packages(group)] == ["bridge", "mlflow"]


def test_the_api_has_nothing_that_reads_forms() -> None:
    """No operation takes one, and what reads them has had its holes (CVE-2026-42561)."""
    assert not {"python-multipart", "multipart"} & packages("api")


def test_the_image_is_built_with_the_uv_of_the_makefile() -> None:
    version = (ROOT / "Makefile").read_text().split("UV_VERSION := ")[1].split()[0]
    assert f"ARG UV_VERSION={version}\n" in (ROOT / "deploy" / "Dockerfile").read_text()
