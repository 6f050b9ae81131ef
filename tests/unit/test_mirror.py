"""The alias mirrors the ledger: put right where it differs, never moved back by a look that was too old."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from services.registry_bridge.promote import Promoter
from services.registry_bridge.registration import Registered, Registration
from shared.errors import NotFound
from shared.gates import Decision, Verdict
from shared.ledger import Ledger, versions
from tests import ledgers

TWO = ledgers.CONFIG.replace(
    "[models.delays]", '[models.broken]\nrepository = "file:///nowhere/broken.git"\n\n[models.delays]'
)


@dataclass
class Aliases:
    """The aliases of a registry; `before` is what happens elsewhere just before it answers."""

    aliases: dict[str, int] = field(default_factory=dict)
    before: Callable[[], object] = lambda: None

    def register(self, registration: Registration, *, fence: Callable[[], None]) -> Registered:
        raise NotFound("keeps aliases only")

    def champion(self, model: str) -> int | None:
        once, self.before = self.before, lambda: None
        once()
        if model == "broken":
            raise NotFound("deleted by hand")
        return self.aliases.get(model)

    def set_champion(self, model: str, version: int) -> None:
        self.aliases[model] = version


def test_a_promotion_during_the_look_is_not_undone() -> None:
    ledger, _ = ledgers.in_memory()
    ledgers.adopt(ledger)
    ledgers.serve(ledger, 1)
    registry = Aliases({"delays": 1})

    def promoted_elsewhere() -> None:
        ledgers.serve(ledger, 2)
        registry.set_champion("delays", 2)

    registry.before = promoted_elsewhere
    Promoter(ledger, registry, lambda _: None).mirror()
    assert (ledgers.champion(ledger), registry.aliases) == (2, {"delays": 2})


def test_a_model_that_the_registry_refuses_does_not_hide_the_others() -> None:
    ledger, _ = ledgers.in_memory(TWO)
    for model in ("broken", "delays"):
        ledgers.adopt(ledger, model)
    ledgers.grow(ledger)
    for model in ("broken", "delays"):
        serve(ledger, model)
    registry = Aliases({"delays": 7})
    Promoter(ledger, registry, lambda _: None).mirror()
    assert registry.aliases == {"delays": 1}


def serve(ledger: Ledger, model: str) -> None:
    claimed = ledgers.claim(ledger, ledgers.waiting(ledger, model))
    assert claimed is not None
    ledgers.finish(ledger, claimed)
    ledgers.register(ledger, claimed.run, 1)
    with ledger.write() as tx:
        versions.decide(
            tx, versions.of_run(tx, claimed.run), None, Verdict(Decision.PROMOTE, ("good",)), None, automatic=True
        )
        versions.served(tx, versions.claim_intent(tx, model, ledgers.LEASE))
