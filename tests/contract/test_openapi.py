"""The OpenAPI document: what it promises is exact, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from tests.apis import serve

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
NOUNS = {"arrivals", "deliveries", "events", "history", "models", "notices", "rejections", "runs", "status"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with serve(tmp_path_factory.mktemp("api")) as api:
        answer = api.get("/openapi.json", token=None)
    assert answer.status_code == 200
    return dict(answer.json())


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(child)


def test_the_document_is_valid_and_refers_to_nothing_that_is_not_there(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    references = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert references <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_operation_is_described_and_under_a_noun_of_ours(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        assert operation["description"], path
        assert path.startswith("/v1/") or path in ("/healthz", "/readyz")
        assert path in ("/healthz", "/readyz") or path.split("/")[2] in NOUNS


def test_every_operation_lists_the_problems_that_it_answers_with(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        refusals = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert all(answer["content"] == PROBLEM for answer in refusals.values()), path
        if path.startswith("/v1"):
            assert {"401", "403", "422", "500", "503"} <= set(refusals), path
            assert operation["security"] == [{"token": []}], path
        if "{" in path or method == "post":
            assert "404" in refusals, path
        assert ({"400", "408", "413", "415"} <= set(refusals)) == ("requestBody" in operation), path
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_what_changes_something_answers_202(document: dict[str, Any]) -> None:
    posts = [operation for _, method, operation in operations(document) if method == "post"]
    assert len(posts) == 10
    assert all([status for status in operation["responses"] if status < "400"] == ["202"] for operation in posts)


def test_no_answer_or_body_has_unnamed_fields(document: dict[str, Any]) -> None:
    """Strict models: `extra = forbid` shows as `additionalProperties: false`."""
    open_ones = {
        name
        for name, schema in document["components"]["schemas"].items()
        if "properties" in schema and schema.get("additionalProperties") is not False
    }
    assert open_ones == set()


def test_a_report_is_documented_in_each_form(document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/events"]["post"]
    body = operation["requestBody"]
    assert set(body["content"]) == {"application/json", "application/cloudevents+json"}
    shorthand, data = body["content"]["application/json"]["schema"]["anyOf"]
    assert set(shorthand["properties"]) == {"dataset", "from", "to", "rows", "id"}
    assert set(data["properties"]) == {"from", "to", "rows"}
    assert (shorthand["additionalProperties"], data["additionalProperties"]) == (False, False)
    headers = {one["name"] for one in operation["parameters"] if one["in"] == "header"}
    attributes = {"ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time"}
    assert headers == attributes | {"Idempotency-Key"}
    assert body["required"] is False, "an event in binary mode may have no data"
    assert body["content"]["application/cloudevents+json"]["schema"]["additionalProperties"] is True
    cancel = document["paths"]["/v1/runs/{id}/cancel"]["post"]["requestBody"]
    assert cancel["required"] is False


def test_a_file_is_documented_as_bytes(document: dict[str, Any], tmp_path: Path) -> None:
    answers = document["paths"]["/v1/models/{model}/versions/{version}/files/{path}"]["get"]["responses"]
    assert list(answers["200"]["content"]) == ["application/octet-stream"]
