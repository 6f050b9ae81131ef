"""What a release says of itself: `[project]` and `[tool.headrace]` of the pyproject.toml at its commit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from shared.errors import Refused
from shared.explain import check, refusal
from shared.toml import TomlError, read_toml
from shared.values import (
    CommandLine,
    Duration,
    EntryPoint,
    Finite,
    MetricName,
    Name,
    RepositoryPath,
    Strict,
    Within,
    rule,
)

_TAKEN = ("name", "version", "requires-python")
_ADVICE = {
    "entry": 'write train = "module:function"',
    "env": "the operator passes variables, with pass_env in headrace.toml",
    "queue": 'write compute_class = "standard"',
}


def check_python(text: str) -> str:
    try:
        wanted = SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{text!r} is not a version specifier") from error
    if not any(wanted.contains(f"3.{minor}.{patch}") for minor in range(9, 30) for patch in (0, 99)):
        raise ValueError(f"{text!r} allows no Python from 3.9 on, which is what training needs")
    return text


RequiresPython = Annotated[str, AfterValidator(check_python), Field(title="version specifier", examples=[">=3.11"])]
Text = Annotated[str, StringConstraints(min_length=1, max_length=200)]
ParameterName = Annotated[
    str,
    rule(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", "a parameter's name (at most 100 letters, digits and _ . -)"),
    Field(title="parameter name"),
]
ParameterText = Annotated[str, StringConstraints(max_length=5000)]
ParameterInt = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[Finite, Field(ge=0)]


class Use(Strict):
    """How much of a dataset the model trains on; all of it by default."""

    rows: int | None = Field(None, ge=1, description="Train on the newest so many rows only.", examples=[500_000])
    history: Annotated[Duration, AfterValidator(Within(timedelta(seconds=1)))] | None = Field(
        None,
        description="Train on rows of this age at most, counted back from the newest; the dataset needs a `time_column`.",
        examples=["365d"],
    )


class Gate(Strict):
    """A rule on one metric of a candidate, in the metric's own units; with several limits all must hold."""

    min: Finite | None = Field(None, description="Never below this.", examples=[0.6])
    max: Finite | None = Field(None, description="Never above this.", examples=[20.0])
    max_drop: Positive | None = Field(None, description="Below the champion's by this at most.", examples=[0.005])
    max_drop_percent: Positive | None = Field(
        None, le=100, description="Below the champion's by this share of it at most.", examples=[2]
    )
    max_rise: Positive | None = Field(None, description="Above the champion's by this at most.", examples=[0.5])
    max_rise_percent: Positive | None = Field(
        None, le=10_000, description="Above the champion's by this share of it at most.", examples=[2]
    )
    lower_is_better: bool = Field(False, description="For errors and losses: a fall is an improvement.")

    @property
    def compares(self) -> bool:
        """Whether it needs the champion's score."""
        limits = (self.max_drop, self.max_drop_percent, self.max_rise, self.max_rise_percent)
        return any(limit is not None for limit in limits)

    @model_validator(mode="after")
    def _limits_that_make_sense(self) -> Self:
        drops = self.max_drop is not None or self.max_drop_percent is not None
        rises = self.max_rise is not None or self.max_rise_percent is not None
        if not drops and not rises and self.min is None and self.max is None:
            raise ValueError(
                "the gate sets no limit; add min, max, max_drop or max_drop_percent (max_rise… where lower is better)"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so nothing can pass")
        if drops and self.lower_is_better:
            raise ValueError("a drop is an improvement where lower_is_better = true; use max_rise or max_rise_percent")
        if rises and not self.lower_is_better:
            raise ValueError(
                "a rise is an improvement; add lower_is_better = true, or use max_drop or max_drop_percent"
            )
        return self


class Project(Strict):
    """What is read of `[project]`; the rest of it is the author's own."""

    model_config = ConfigDict(populate_by_name=True)

    name: Text | None = Field(None, description="The distribution's name.", examples=["flight-delays"])
    version: Text | None = Field(None, description="The release's version.", examples=["1.4.0"])
    requires_python: RequiresPython | None = Field(
        None, alias="requires-python", description="The Pythons that it runs on.", examples=[">=3.11"]
    )


class Tool(Strict):
    """`[tool.headrace]`, key by key."""

    train: EntryPoint | None = Field(
        None,
        description="The function that trains: `train(job)` returns the model, which is saved for you, or saves it and returns None. Either this or `command` is required.",
        examples=["flight_delays.model:train"],
    )
    command: CommandLine | None = Field(
        None,
        description="In the place of `train`: a program in any language, run in a copy of the repository.",
        examples=[["sh", "train.sh"]],
    )
    evaluate: EntryPoint | None = Field(
        None,
        description="The function that scores: `evaluate(job, model)` returns metrics by name.",
        examples=["flight_delays.model:evaluate"],
    )
    evaluate_command: CommandLine | None = Field(
        None,
        description="In the place of `evaluate`: a program that writes metrics.json.",
        examples=[["Rscript", "evaluate.R"]],
    )
    export: bool = Field(
        True,
        description="Whether commands find the rows of `sql` datasets as CSV files; `false` if they read them themselves.",
    )
    predict: EntryPoint | None = Field(
        None,
        description="What serves: `predict(model, frame)`; by default the model's own `predict`.",
        examples=["flight_delays.model:predict"],
    )
    load: EntryPoint | None = Field(
        None, description="`load(path)` reads back what `train` saved itself.", examples=["flight_delays.model:load"]
    )
    compute_class: Name = Field(
        "standard", description="The kind of worker that trains it.", examples=["compute-optimized"]
    )
    time_limit: Annotated[Duration, AfterValidator(Within(timedelta(seconds=1)))] | None = Field(
        None,
        description="A training may last so long; the operator's own limit holds too.",
        examples=["2h"],
    )
    test: CommandLine | None = Field(
        None,
        description="The model's own tests: a program that runs before each training, in the model's environment and a copy of its files; "
        "if it fails nothing is trained.",
        examples=["pytest -q"],
    )
    paths: tuple[RepositoryPath, ...] = Field(
        (),
        max_length=100,
        description="Files and directories beside this file that decide what the model becomes: a release that changes nothing under "
        "them, in the requirements or in this table is taken over without a training. All without it.",
        examples=[["flight_delays"]],
    )
    datasets: dict[Name, Use] = Field(
        min_length=1, description="A table for each dataset that it trains on; new data there is a reason to retrain."
    )
    gates: dict[MetricName, Gate] = Field(
        default={}, max_length=100, description="For each metric, what a candidate must reach to be promoted."
    )
    parameters: dict[ParameterName, ParameterText | bool | ParameterInt | Finite] = Field(
        default={}, max_length=200, description="Handed to the author's functions as `job.parameters`, and logged."
    )

    @model_validator(mode="after")
    def _one_way_for_each(self) -> Self:
        if self.train is None and self.command is None:
            raise refusal((("train",), 'is missing (module:function); or add command = ["sh", "train.sh"]'))
        for key, function in (("command", self.train), ("evaluate_command", self.evaluate)):
            if function is not None and getattr(self, key) is not None:
                beside = "train" if key == "command" else "evaluate"
                raise refusal(((key,), f"stands beside {beside}; keep one of them"))
        return self

    @model_validator(mode="after")
    def _gates_have_metrics(self) -> Self:
        if problem := self.unjudged(self.gates):
            raise refusal((("gates",), f"{problem}, or drop the gates"))
        return self

    @property
    def can_score(self) -> bool:
        """Whether a model of it can be scored on other rows than those of its training."""
        return self.evaluate is not None or self.evaluate_command is not None

    def unjudged(self, gates: Mapping[str, Gate]) -> str | None:
        """Why these gates could never be judged, and what to add; None if they can be."""
        comparing = [name for name, gate in gates.items() if gate.compares]
        if self.can_score or not gates or (self.command is not None and not comparing):
            return None
        if self.command is None:
            return f'limits on {", ".join(gates)} need metrics; add evaluate = "module:function"'
        return (
            f"{', '.join(comparing)} compares with the champion, which must be scored on the same rows; "
            'add evaluate_command = ["sh", "evaluate.sh"] or evaluate = "module:function"'
        )


class Declaration(Tool, Project):
    """All that the platform knows of a release without running it; stored with the release as JSON."""

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Declaration:
        return cls.model_validate_json(text)


def parse(pyproject: bytes) -> Declaration:
    """Read the declaration; raises `Refused` with one line for each thing that is wrong and what would be right."""
    try:
        document = read_toml(pyproject, "pyproject.toml")
    except TomlError as error:
        raise Refused(str(error)) from error
    project, own = _table(document.data, "project"), _table(_table(document.data, "tool") or {}, "headrace")
    if own is None:
        raise Refused(
            'pyproject.toml: [tool.headrace] is missing; add it with train = "module:function", and a table '
            "[tool.headrace.datasets.NAME] for each dataset that the model trains on"
        )
    taken = {key: value for key, value in (project or {}).items() if key in _TAKEN}
    who, problems = check(Project, taken, document, at=("project",), advice={})
    what, more = check(Tool, own, document, at=("tool", "headrace"), advice=_ADVICE)
    if who is None or what is None:
        raise Refused("\n".join(problem.text for problem in (*problems, *more)))
    return Declaration(**dict(who), **dict(what))


def _table(data: dict[str, object], key: str) -> dict[str, object] | None:
    found = data.get(key)
    return found if isinstance(found, dict) else None


def example() -> Declaration:
    return Declaration(
        name="flight-delays",
        version="1.4.0",
        requires_python=">=3.11",
        train="flight_delays.model:train",
        evaluate="flight_delays.model:evaluate",
        compute_class="compute-optimized",
        datasets={"flights": Use(rows=500_000)},
        gates={"auc": Gate(min=0.6, max_drop=0.005)},
    )
