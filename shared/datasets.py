"""A dataset, as the operator writes it into headrace.toml: where its growth is noticed, and what nobody trains on."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from shared.explain import refusal
from shared.values import DatabaseUrl, Duration, Identifier, Share, Strict, Within

_SECOND, _DAY, _NONE = timedelta(seconds=1), timedelta(days=1), timedelta(0)
_REQUIRED: dict[str, JsonValue] = {"default": "required"}


class Sql(Strict):
    """A table that grows: rows are noticed by a column that only rises."""

    kind: Literal["sql"] = Field("sql", description="A table of a database.", json_schema_extra=_REQUIRED)
    url: DatabaseUrl = Field(
        description="The database; a URL that holds a password stands in a variable.", examples=["env:FLIGHTS_URL"]
    )
    table: Identifier = Field(description="The table or view, without a schema.", examples=["flights"])
    cursor: Identifier = Field(
        description="An indexed column that is higher in every new row: an integer or a timestamp.", examples=["id"]
    )
    poll: Annotated[Duration, AfterValidator(Within(_SECOND / 10, _DAY))] = Field(
        _SECOND,
        description="How often to look where the database cannot tell.",
        examples=["1s"],
    )
    lag: Annotated[Duration, AfterValidator(Within(_NONE, _DAY))] = Field(
        _NONE,
        description="Rows younger than this may still get company below them; they are read when it has passed. Not needed for PostgreSQL's open transactions.",
        examples=["5s"],
    )
    time_column: Identifier | None = Field(
        None, description="A column with each row's time, for `history` in a release.", examples=["time_hour"]
    )

    @property
    def url_variable(self) -> str | None:
        """The variable that holds the URL, where it does not stand here itself."""
        return self.url.removeprefix("env:") if self.url.startswith("env:") else None


class Rest(Strict):
    """A dataset whose growth is only reported, by `POST /v1/events`."""

    kind: Literal["rest"] = Field(
        "rest", description="Growth is reported over REST and looked for nowhere.", json_schema_extra=_REQUIRED
    )


class Stream(Strict):
    """A dataset whose growth is only reported, by events on the Redis stream `headrace:arrivals`."""

    kind: Literal["stream"] = Field(
        "stream",
        description="Growth is reported over the stream (or over REST) and looked for nowhere.",
        json_schema_extra=_REQUIRED,
    )


Source = Annotated[Sql | Rest | Stream, Field(discriminator="kind")]
Reported = Rest | Stream
"""Kinds without a source to look at: their range comes from the reports, whichever way these come."""


class Holdout(Strict):
    """The rows that nobody trains on, for judging candidate and champion alike."""

    newest: Share = Field(Decimal("0.1"), description="The newest part of the data.", examples=["10%"])
    max_rows: int = Field(100_000, ge=1, le=10_000_000, description="But not more rows than these.")
    min_rows: int = Field(100, ge=1, description="With fewer rows the verdict is *undecided*.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_rows > self.max_rows:
            raise refusal((("min_rows",), f"above max_rows = {self.max_rows}, so that no verdict could ever be made"))
        return self


class Dataset(Strict):
    """A named body of data."""

    source: Source = Field(description="Where its growth is noticed.")
    holdout: Holdout = Field(Holdout(), description="The rows that nobody trains on.")

    @property
    def reported(self) -> bool:
        """Whether growth is only reported; of any other kind a report is a nudge to look."""
        return isinstance(self.source, Reported)
