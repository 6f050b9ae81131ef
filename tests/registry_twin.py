"""A model registry in memory, as careful and as forgetful as the real one: one version per run, an alias that anyone can move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from services.registry_bridge.registration import Registered, Registration
from shared.errors import HeadraceError, Refused


class Killed(BaseException):
    """The process ends here: nothing catches it."""


@dataclass
class RegistryTwin:
    """`trouble` is raised by each call while it is set; `refuses` names models whose alias cannot be moved.

    `killed_after` ends the process when a version has been made; `before` and `after` happen around the making.
    `tokens` are those of the registrations that came past their fence.
    """

    runs: dict[str, list[int]] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    moves: list[tuple[str, int]] = field(default_factory=list)
    trouble: HeadraceError | None = None
    refuses: set[str] = field(default_factory=set)
    killed_after: bool = False
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    tokens: list[int] = field(default_factory=list)
    removed: list[tuple[str, int]] = field(default_factory=list)

    def register(self, registration: Registration, *, fence: Callable[[], None]) -> Registered:
        self._answer()
        self.before()
        fence()
        self.tokens.append(registration.token)
        known = self.runs.setdefault(registration.model, [])
        if registration.run not in known:
            known.append(registration.run)
        if self.killed_after:
            raise Killed
        self.after()
        number = known.index(registration.run) + 1
        return Registered(number, f"r{registration.run}", f"m-{registration.run}")

    def champion(self, model: str) -> int | None:
        self._answer()
        return self.aliases.get(model)

    def set_champion(self, model: str, version: int) -> None:
        self._answer()
        if model in self.refuses:
            raise Refused(f"MLflow has no version {version} of {model}")
        self.aliases[model] = version
        self.moves.append((model, version))

    def remove(self, model: str, version: int, mlflow_run: str, model_id: str) -> None:
        self._answer()
        if self.aliases.get(model) == version:
            raise Refused(f"version {version} of {model} is MLflow's champion")
        self.removed.append((model, version))

    def _answer(self) -> None:
        if self.trouble is not None:
            raise self.trouble
