"""How often one token may ask, and what it is told above that."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.rates import BURST_S, Rates
from tests.apis import serve


class Watch:
    at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.mark.parametrize("per_s", [0.05, 1.0, 7.0, 100.0])
def test_in_the_long_run_nobody_gets_more_than_the_rate_and_everybody_gets_it(per_s: float) -> None:
    watch = Watch()
    rates = Rates(per_s, watch)
    let_through, seconds = 0, 1000
    for tick in range(seconds * 10):
        watch.at = tick / 10
        let_through += sum(rates.take("storefront") == 0.0 for _ in range(20))
    burst = max(1.0, per_s * BURST_S)
    assert per_s * seconds - 1 <= let_through <= per_s * seconds + burst + 1


def test_who_waits_as_long_as_is_said_goes_on() -> None:
    watch = Watch()
    rates = Rates(2.0, watch)
    for _ in range(100):
        if wait_s := rates.take("storefront"):
            watch.at += wait_s + 1e-9
            assert rates.take("storefront") == 0.0
    assert rates.take("another") == 0.0


def test_a_token_above_its_rate_gets_429_with_the_time_to_wait_and_others_go_on(tmp_path: Path) -> None:
    with serve(tmp_path) as api:
        object.__setattr__(api.stores, "rates", Rates(0.1))
        assert api.get("/v1/runs", token="read").status_code == 200
        refused = api.get("/v1/runs", token="read")
        assert (refused.status_code, refused.headers["Content-Type"]) == (429, "application/problem+json")
        assert 1 <= int(refused.headers["Retry-After"]) <= 10
        assert "Retry-After" in refused.json()["advice"]
        assert api.get("/v1/runs", token="all").status_code == 200
        assert api.get("/healthz", token=None).status_code == 200
        assert api.get("/v1/runs", token="hr_guessed").status_code == 401
