from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.product import Product


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The embedded stack, one for each file of tests; every test adds models of its own."""
    started = Product(tmp_path_factory.mktemp("product"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
