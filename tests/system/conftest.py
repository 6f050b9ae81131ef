from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import Postgres
from tests.s3_server import S3Server
from tests.system.product import Product


@pytest.fixture(scope="session", params=["embedded", "servers"])
def stack(request: pytest.FixtureRequest) -> str:
    """Which of the two stacks: SQLite and directories, or PostgreSQL and S3."""
    return str(request.param)


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest, stack: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The started product, one of each stack; every test adds models of its own."""
    elsewhere = (
        servers(request.getfixturevalue("postgres"), request.getfixturevalue("s3_server")) if stack == "servers" else {}
    )
    started = Product(tmp_path_factory.mktemp("product"), elsewhere=elsewhere)
    try:
        started.start()
        yield started
        started.audit()
    finally:
        started.stop()


@pytest.fixture(autouse=True)
def _only_its_own_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test its models are taken out of the configuration; and after each outage the stack is audited, which takes a good second."""
    yield
    if "product" in request.fixturenames:
        product: Product = request.getfixturevalue("product")
        if request.module.__name__.endswith("test_outages") and not product.elsewhere:
            product.audit()
        product.forget_models()


def servers(postgres: Postgres, s3: S3Server) -> dict[str, str]:
    """The variables by which a stack finds a new database and a new place in the store."""
    return {
        "HEADRACE_LEDGER_URL": postgres.new_database(),
        "HEADRACE_BLOBS_URL": s3.new_url("blobs"),
        "HEADRACE_LOGS_URL": s3.new_url("logs"),
        **s3.environment,
    }
