"""headrace.toml: the operator's datasets, models and subscriptions; loaded, validated, explained.

What is in force stands in the ledger as one row of JSON; no secret is in it, only the names of variables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from shared.datasets import Dataset, Holdout, Reported, Rest, Source, Sql, Stream
from shared.declaration import Declaration, Gate
from shared.errors import ConfigurationError, Refused
from shared.explain import Problem, check, closest, refusal
from shared.notices import EVERYTHING
from shared.repository import is_local
from shared.subscriptions import Subscription, name_subscriptions
from shared.toml import MAX_BYTES, Document, KeyPath, TomlError, read_toml
from shared.values import (
    AbsolutePath,
    Between,
    Bytes,
    Credentials,
    Duration,
    EnvName,
    MetricName,
    Name,
    ReleaseChoice,
    RepositoryPath,
    RepositoryUrl,
    Size,
    Strict,
    TagPattern,
    Within,
)

__all__ = [
    "Catalog", "ComputeClass", "Dataset", "Holdout", "Keep", "Limits", "Model", "Policy", "Reported", "Rest", "Source", "Sql", "StackOptions", "Stream",
    "Subscription",
    "check_declaration", "digest", "example", "load", "parse", "variables",
]  # fmt: skip

_ADVICE = {
    "password": 'put the whole URL in a variable and write url = "env:NAME"',
    "branch": 'write release = "branch:NAME"',
    "tag": 'write release = "tag:NAME"',
    "commit": "write release = the 40 hex digits of the commit",
    "env": 'write pass_env = ["NAME"]; values stay out of this file',
    "token": "values stay out of this file; name a variable",
    "retention": 'write keep = { runs = "180d", rejected = 20, logs = "30d", environments = "20GB" }',
    "queue": "a release names its compute_class; the classes stand under [compute_classes]",
}
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_EXAMPLE = b"""
[datasets.flights]
source = { kind = "sql", url = "env:FLIGHTS_URL", table = "flights", cursor = "id", poll = "1s" }
holdout = { newest = "10%", max_rows = 100_000 }

[models.flight-delays]
repository = "https://git.example.com/ml/flight-delays.git"
release = "latest"
policy = { min_rows = 1000, quiet = "30s", cooldown = "10m", max_wait = "6h" }
promote = "automatic"
pass_env = ["FLIGHTS_URL"]

[compute_classes.standard]
slots = 1

[compute_classes.compute-optimized]
slots = 1

[[subscriptions]]
url = "https://storefront.example.com/hooks/models"
secret = "env:STOREFRONT_HOOK_SECRET"
models = ["flight-delays"]
types = ["version.promoted", "version.rolled_back"]
"""
_SECOND, _DAY, _NONE = timedelta(seconds=1), timedelta(days=1), timedelta(0)


class Policy(Strict):
    """When new data is worth a training."""

    min_rows: int = Field(
        1, ge=0, description="Wait for so many new rows; a report without a number counts as enough.", examples=[1000]
    )
    quiet: Duration = Field(_NONE, description="Wait until nothing has arrived for so long.", examples=["30s"])
    cooldown: Duration = Field(_NONE, description="Let so much time pass after the last run's end.", examples=["10m"])
    max_wait: Annotated[Duration, AfterValidator(Within(_SECOND))] | None = Field(
        None,
        description="Wait no longer than this after the first new row, whatever `min_rows` and `quiet` say.",
        examples=["6h"],
    )


class Limits(Strict):
    """What one training, or one scoring, of the model may take, with all the processes that it starts. What takes more is stopped and fails, and is not tried again."""

    memory: Annotated[Size, AfterValidator(Between(64 * 1000**2, 1000**5))] | None = Field(
        None,
        description="Memory; nine tenths of the machine's, or of the container's, without it.",
        examples=[Bytes(8 * 1000**3)],
    )
    processes: int = Field(4000, ge=10, le=100_000, description="Processes and threads at a time.")
    silence: Annotated[Duration, AfterValidator(Within(_SECOND, 30 * _DAY))] | None = Field(
        None,
        description="So long it may write nothing: no output, no progress, no metric, no checkpoint. Any time without it.",
        examples=["30m"],
    )
    open_files: int = Field(4096, ge=64, le=1_000_000, description="Open files of each process.")
    disk: Annotated[Size, AfterValidator(Between(1000**2, 1000**5))] = Field(
        Bytes(50 * 1000**3),
        description="What it leaves on the disk in its scratch directory.",
        examples=[Bytes(50 * 1000**3)],
    )
    checkpoint: Annotated[Size, AfterValidator(Between(1000, 1000**5))] = Field(
        Bytes(10 * 1000**3),
        description="A checkpoint; of a larger one the training goes on, and the one before is kept.",
        examples=[Bytes(10 * 1000**3)],
    )
    log: Annotated[Size, AfterValidator(Between(10_000, 1000**3))] = Field(
        Bytes(50 * 1000**2),
        description="Its output: of more, the first nine tenths and the last one are kept, and the training goes on.",
        examples=[Bytes(50 * 1000**2)],
    )


class Model(Strict):
    """A thing to train: a repository and how the operator wants it handled."""

    repository: RepositoryUrl = Field(
        description="Where its source is, as an https:, ssh: or file: URL.",
        examples=["https://git.example.com/ml/flight-delays.git"],
    )
    credentials: Credentials | None = Field(
        None,
        description="What the repository's server asks for: the variable or the file with a token or `user:password` for https, with a private key for ssh.",
        examples=["env:GIT_TOKEN"],
    )
    subdirectory: RepositoryPath | None = Field(
        None,
        description="Where in the repository the model is, with its `pyproject.toml`; the rest of the repository is no part of it. "
        "Without it at the top.",
        examples=["models/churn"],
    )
    release: ReleaseChoice = Field(
        "latest",
        description='What to train: the highest version tag (`"latest"`), `"branch:NAME"`, `"tag:NAME"` or a commit.',
        examples=["latest"],
    )
    tags: TagPattern = Field(
        "*",
        description='With `release = "latest"`, the form of its version tags, with one `*` for the version: '
        '`"churn-*"` where several models of one repository have tags of their own.',
        examples=["churn-*"],
    )
    prereleases: bool = Field(
        False,
        description='With `release = "latest"`, whether a pre-release (`v2.0.0-rc.1`) may be the highest version.',
    )
    release_poll: Annotated[Duration, AfterValidator(Within(_SECOND, _DAY))] = Field(
        30 * _SECOND, description="How often to look for a release.", examples=["30s"]
    )
    policy: Policy = Field(Policy(), description="When new data is worth a training.")
    promote: Literal["automatic", "manual"] = Field(
        "automatic", description="Whether a candidate that passed serves at once, or waits for a person."
    )
    pass_env: tuple[EnvName, ...] = Field(
        (), max_length=100, description="The variables that the author's code sees.", examples=[["FLIGHTS_URL"]]
    )
    sandbox: Literal["bubblewrap"] | None = Field(
        None,
        description="Where its code runs: without it on the machine as the worker sees it, with it in a sandbox that the program bwrap makes "
        "(package bubblewrap): the system read-only, a /tmp and a home of its own, no network, and of other files only what it needs.",
        examples=["bubblewrap"],
    )
    network: bool = Field(False, description="With `sandbox`, whether its code may use the network.")
    readable: tuple[AbsolutePath, ...] = Field(
        (),
        max_length=100,
        description="With `sandbox`, files and directories of the machine that its code may read.",
        examples=[["/srv/images"]],
    )
    time_limit: Annotated[Duration, AfterValidator(Within(_SECOND, 30 * _DAY))] = Field(
        _DAY, description="A training may last so long at most.", examples=["24h"]
    )
    limits: Limits = Field(Limits(), description="What one training may take.")
    attempts: int = Field(3, ge=1, le=10, description="Tries per run when a machine or a server fails.")
    pause_after: int = Field(
        3,
        ge=0,
        le=100,
        description="So many failed runs in a row, and nothing is trained of itself any more until `headrace resume` or a new release; 0: never.",
    )
    gates: dict[MetricName, Gate] = Field(
        default={},
        max_length=100,
        description="A floor under the release's own gates: limits that it can only tighten.",
    )

    @model_validator(mode="after")
    def _credentials_have_a_server(self) -> Self:
        if self.credentials is not None and is_local(self.repository):
            raise refusal((("credentials",), "a repository on this machine asks for none; drop it"))
        return self

    @model_validator(mode="after")
    def _what_opens_a_sandbox_has_one(self) -> Self:
        if self.sandbox is None and (opened := [key for key in ("network", "readable") if getattr(self, key)]):
            advice = "goes with sandbox only: without it the code reaches whatever the worker does; drop it"
            raise refusal(*(((key,), advice) for key in opened))
        return self

    @model_validator(mode="after")
    def _tags_are_chosen_from(self) -> Self:
        chosen = [key for key in ("tags", "prereleases") if getattr(self, key) != type(self).model_fields[key].default]
        if chosen and self.release != "latest":
            raise refusal(*(((key,), 'goes with release = "latest" only; drop one of them') for key in chosen))
        return self


class ComputeClass(Strict):
    """A kind of worker; without this table there is one, `standard`, with one slot."""

    slots: int = Field(
        1,
        ge=0,
        le=64,
        description="Trainings at a time in the worker that `make up` starts; 0: its workers run elsewhere.",
    )
    gpus: int = Field(
        0, ge=0, le=64, description="GPUs for each training, which nobody else has meanwhile; 0: it sees none."
    )


class Keep(Strict):
    """How long and how much is kept. What was ever promoted, is pinned, waits for a word or is in use is never taken."""

    runs: Annotated[Duration, AfterValidator(Within(_SECOND))] = Field(
        180 * _DAY,
        description="Bundles of runs, and notices with their deliveries, for so long after they ended.",
        examples=["180d"],
    )
    rejected: int = Field(
        20,
        ge=0,
        le=100_000,
        description="The files of so many rejected versions of each model, and of as many samples, the newest ones.",
    )
    logs: Annotated[Duration, AfterValidator(Within(_SECOND))] = Field(
        30 * _DAY, description="Logs of runs, for so long after their last line.", examples=["30d"]
    )
    environments: Size = Field(
        Bytes(20 * 1000**3),
        description="On the disk of each trainer: environments, checkouts and fetched models may take so much together; "
        "what has not been used for longest goes first.",
        examples=[Bytes(20 * 1000**3)],
    )


Port = Annotated[int, Field(ge=1, le=65535, title="port")]


class StackOptions(Strict):
    """Ports of `make up`; free ones by default."""

    api_port: Port | None = Field(None, description="The API's.", examples=[8420])
    mlflow_port: Port | None = Field(None, description="The MLflow server's.", examples=[5000])
    flower_port: Port | None = Field(None, description="Flower's.", examples=[5555])
    redis_port: Port | None = Field(None, description="The Redis protocol server's.", examples=[6379])

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        taken: dict[int, str] = {}
        twice = [
            ((key,), f"{port} is {taken[port]} already")
            for key, port in self
            if port is not None and taken.setdefault(port, key) != key
        ]
        if twice:
            raise refusal(*twice)
        return self


class Catalog(Strict):
    """The whole file."""

    datasets: dict[Name, Dataset] = Field(default={}, description="What data there is.")
    models: dict[Name, Model] = Field(default={}, description="What is trained.")
    subscriptions: tuple[Subscription, ...] = Field((), max_length=1000, description="Who is told.")
    compute_classes: dict[Name, ComputeClass] = Field(
        default={"standard": ComputeClass()}, description="The kinds of workers that a release can ask for."
    )
    keep: Keep = Field(Keep(), description="What is kept, and for how long.")
    stack: StackOptions = Field(StackOptions(), description="The embedded stack.")

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        names = [subscription.name for subscription in self.subscriptions]
        wrong: list[tuple[KeyPath, str]] = []
        for index, subscription in enumerate(self.subscriptions):
            at = ("subscriptions", index)
            if subscription.name in names[:index]:
                wrong.append(((*at, "name"), f'"{subscription.name}" names an earlier subscription already'))
            missing = [model for model in subscription.models if model != EVERYTHING and model not in self.models]
            wrong += [
                ((*at, "models"), f'there is no model "{model[:60]}"{closest(model, self.models)}') for model in missing
            ]
        if wrong:
            raise refusal(*wrong)
        return self

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Catalog:
        return cls.model_validate_json(text)


def load(path: Path) -> Catalog:
    """Read headrace.toml; raises `ConfigurationError` with one line for each thing that is wrong and what would be right."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot be read ({error.strerror}); name your file with CONFIG=…", file=str(path)
        ) from error
    return parse(raw, str(path))


def parse(raw: bytes, file: str = "headrace.toml") -> Catalog:
    """As `load`, of bytes in hand."""
    try:
        document = read_toml(raw, file)
    except TomlError as error:
        raise ConfigurationError(error.message, file=file, line=error.line) from error
    data = document.data | {
        key: name_subscriptions(value) for key, value in document.data.items() if key == "subscriptions"
    }
    catalog, problems = check(Catalog, data, document, at=(), advice=_ADVICE)
    if catalog is not None:
        problems = tuple(_in_vain(catalog, document))
    if catalog is None or problems:
        first, *rest = problems
        message = "\n".join([first.unplaced, *(problem.text for problem in rest)])
        raise ConfigurationError(message, file=file, line=first.line)
    return catalog


def _in_vain(catalog: Catalog, document: Document) -> Iterator[Problem]:
    """What a new file may not say, and one that is in force already may: it is read on, and does nothing."""
    for name, model in catalog.models.items():
        for index, variable in enumerate(model.pass_env):
            if variable in GPU_VARIABLES:
                path = ("models", name, "pass_env", index)
                advice = f"{variable} is set for each training to the GPUs that it was given: drop it here, and say gpus = N in its compute class"
                yield Problem(path, advice, document.line(path), document.file)


def digest(catalog: Catalog) -> str:
    """`sha256:…` of what is said, whatever the order and the comments."""
    canonical = json.dumps(json.loads(catalog.to_json()), sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def variables(catalog: Catalog) -> frozenset[str]:
    """Every variable that the file names: what the operator must have set."""
    urls = [dataset.source.url_variable for dataset in catalog.datasets.values() if isinstance(dataset.source, Sql)]
    secrets = [subscription.secret.removeprefix("env:") for subscription in catalog.subscriptions]
    passed = [name for model in catalog.models.values() for name in model.pass_env]
    given = [model.credentials or "" for model in catalog.models.values()]
    git = [reference.removeprefix("env:") for reference in given if reference.startswith("env:")]
    return frozenset(name for name in (*urls, *secrets, *passed, *git) if name)


def check_declaration(declaration: Declaration, catalog: Catalog, model: str | None = None) -> None:
    """Raise `Refused` where a release asks for what the operator does not have; `model` adds that model's own gates."""
    problems = list(_conflicts(declaration, catalog, catalog.models.get(model) if model else None))
    if problems:
        raise Refused("\n".join(problems))


def _conflicts(declaration: Declaration, catalog: Catalog, model: Model | None) -> Iterator[str]:
    if declaration.compute_class not in catalog.compute_classes:
        near = closest(declaration.compute_class, catalog.compute_classes)
        yield f'compute_class: the operator has no class "{declaration.compute_class}"{near}'
    for name, use in declaration.datasets.items():
        dataset = catalog.datasets.get(name)
        if dataset is None:
            yield f'datasets.{name}: the operator has no dataset "{name}"{closest(name, catalog.datasets)}'
        elif dataset.reported and (use.rows or use.history):
            yield f"datasets.{name}: its data is only reported, so that no part of it can be chosen; drop rows and history"
        elif isinstance(dataset.source, Sql) and use.history and not dataset.source.time_column:
            yield (
                f"datasets.{name}.history: the dataset has no time_column, so that the age of a row is not known; "
                "use rows = N, or ask the operator for a time_column"
            )
    if model and (problem := declaration.unjudged(model.gates)):
        yield f"evaluate: the operator sets gates, and {problem}"


def example() -> Catalog:
    return parse(_EXAMPLE)
