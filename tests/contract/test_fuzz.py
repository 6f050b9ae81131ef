"""Generated requests to every operation of the OpenAPI document: none is a defect of ours, and each answer is a documented one.

A bounded form with a fixed seed; `make fuzz` (FUZZ_REQUESTS=20000) goes on for as many requests, with a seed of its own that it prints.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shared.gates import Decision
from shared.http import MAX_WAIT_S
from shared.logs import Logs
from tests import apis
from tests.apis import Api, serve

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
BOUNDED = 400
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", str(BOUNDED)))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or (
    random.SystemRandom().randrange(1, 2**31) if REQUESTS > BOUNDED else 20261124
)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Api]:
    """One ledger for all, in which something has happened already: operations find what they ask for."""
    place = tmp_path_factory.mktemp("fuzz")
    database = Path(shutil.copy(migrated, place / "ledger.db"))
    with serve(place / "stores", database=database) as running:
        run = apis.train(running)
        _log(running.stores.logs, run)
        apis.register(running, run, 1, place / "version")
        apis.judge(running, 1, Decision.PROMOTE)
        apis.follow_alias(running, 1)
        yield running


def _log(logs: Logs, run: int) -> None:
    logs.append(f"runs/{run}/1", b"epoch 1\n")


KNOWN = {"model": "delays", "models": ["delays"], "number": 1, "version": 1, "id": 1, "run": 1, "dataset": "reported"}


def _cases(operation: Any) -> Any:
    """What keeps to the document, and, where there is something to break, what does not."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    takes = any((*operation.path_parameters, *operation.query, *operation.body))
    return st.one_of(good, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)) if takes else good


def _name_what_is_there(case: schemathesis.Case) -> None:
    """Otherwise nearly all would end at a model or a run that nobody has."""
    for part in (case.path_parameters, case.body):
        if isinstance(part, dict):
            part.update({key: KNOWN[key] for key in part if key in KNOWN})


def _hurry(case: schemathesis.Case) -> None:
    """A long poll that may wait need not."""
    wait = case.query.get("wait") if isinstance(case.query, dict) else None
    if isinstance(wait, int | float) and 0 <= wait <= MAX_WAIT_S:
        case.query["wait"] = 0


def _ask(operation: Any, headers: dict[str, str], times: int) -> Counter[int]:
    statuses: Counter[int] = Counter()

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=times,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @hypothesis.given(case=_cases(operation), known=st.booleans())
    def ask(case: schemathesis.Case, known: bool) -> None:
        if known:
            _name_what_is_there(case)
        _hurry(case)
        answer = case.call(headers=headers)
        case.validate_response(answer, checks=CHECKS)
        statuses[answer.status_code] += 1

    ask()
    return statuses


@pytest.mark.timeout(max(180, REQUESTS))
def test_no_generated_request_gets_an_answer_that_is_not_documented(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", api.app)
    operations = [found.ok() for found in schema.get_all_operations()]
    told: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {api.secrets['all']}"}
    for operation in operations:
        statuses += (answers := _ask(operation, headers, max(1, REQUESTS // len(operations))))
        told[operation.label] += answers.total()
    with capsys.disabled():
        counted = dict(sorted(statuses.items()))
        sys.stdout.write(f"\n{told.total()} requests to {len(told)} operations, seed {SEED}: {counted}\n")
    assert len(told) == len(operations) >= 25
    assert told.total() >= REQUESTS * 0.5
    assert {200, 202, 404, 422} <= statuses.keys()
