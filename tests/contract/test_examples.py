"""Signature and input example, taken from what `predict` is given; nobody asks the author for them."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import headrace.harness_example as examples
import numpy
import pandas
import pytest
from headrace.harness_example import Example, watched

FRAME = pandas.DataFrame(
    {
        "carrier": ["AA", None] * 4,
        "hour": range(8),
        "late": [0.5, float("nan")] * 4,
        "day": pandas.Timestamp("2026-01-01"),
    }
)


class Model:
    def predict(self, rows: Any) -> Any:
        return [1.0] * len(rows)

    def predict_proba(self, rows: Any) -> Any:
        return self.predict(rows)


class Other(Model):
    pass


def predict(model: Model, frame: Any) -> Any:
    return model.predict(frame)


def seen(model: Any, entry: str | None, use: Any) -> list[Any]:
    given: list[Any] = []
    with watched(model, entry, given.append):
        use()
    return given


def test_a_frame_is_its_first_rows_and_the_types_of_all() -> None:
    example = Example.of(FRAME)
    assert example is not None
    assert (example.takes, len(example.rows)) == ("frame", 5)
    assert example.columns == [
        {"name": "carrier", "type": "string", "required": False},
        {"name": "hour", "type": "long"},
        {"name": "late", "type": "double", "required": False},
        {"name": "day", "type": "datetime"},
    ]


def test_an_array_is_a_tensor_with_any_number_of_rows() -> None:
    example = Example.of(numpy.zeros((9, 4), dtype="float32"))
    assert example is not None
    assert example.columns == [{"type": "tensor", "dtype": "float32", "shape": [-1, 4]}]


def test_a_list_of_dictionaries_is_a_table_in_which_some_values_may_lack() -> None:
    example = Example.of([{"a": 1, "b": "x"}, {"a": 2, "c": True}])
    assert example is not None
    assert example.takes == "records"
    assert example.columns == [
        {"name": "a", "type": "long"},
        {"name": "b", "type": "string", "required": False},
        {"name": "c", "type": "boolean", "required": False},
    ]


def test_a_column_that_predict_does_without_is_not_part_of_it() -> None:
    frame = Example.of(FRAME[["hour", "late", "carrier"]])
    assert frame is not None
    found = frame.needed(lambda rows: rows["hour"] + rows["carrier"].isna())
    assert [column["name"] for column in found.columns] == list(found.rows.columns) == ["hour", "carrier"]
    records = Example.of([{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    assert records is not None
    assert records.needed(lambda rows: [row["b"] for row in rows]).rows == [{"b": 2}, {"b": 4}]
    assert records.needed(lambda rows: 1 / 0) is records


@pytest.mark.parametrize(
    "given",
    [[1, 2], ["text"], [], {"a": 1}, None, "text", [{"a": [1]}], [{1: 2}], numpy.array(["x"]), FRAME[["hour", "hour"]]],
    ids=range(10),
)
def test_what_is_no_plain_table_gives_no_example(given: Any) -> None:
    assert Example.of(given) is None


def test_what_the_models_own_predict_is_given_is_seen_and_nothing_else_of_it_changes() -> None:
    model, other, before = Model(), Model(), Model.predict

    def use() -> None:
        assert other.predict([1]) == [1.0]
        assert model.predict_proba(rows=[1, 2]) == [1.0, 1.0]
        assert isinstance(pickle.loads(pickle.dumps(model)), Model)
        assert pickle.loads(pickle.dumps(model.predict))([3]) == [1.0]

    assert seen(model, None, use) == [[1, 2], [1, 2]], "predict_proba asks predict"
    assert Model.predict is before
    assert seen(inherits := Other(), None, lambda: inherits.predict([4])) == [[4]]
    assert "predict" not in vars(Other)


def test_what_the_predict_entry_is_given_is_seen_in_every_module_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = Model(), predict
    monkeypatch.setattr(examples, "predict", original, raising=False)
    entry = f"{__name__}:predict"
    assert seen(model, entry, lambda: (predict(model, [1]), examples.predict(model, frame=[2]))) == [[1], [2]]  # type: ignore[attr-defined]
    assert sys.modules[__name__].predict is original  # type: ignore[attr-defined]


def test_a_class_that_takes_no_attributes_is_left_alone() -> None:
    assert seen(numpy.zeros(1), None, lambda: None) == []
