"""What is due is sent: in order for one consumer, side by side for many, until it has arrived or is given up (I8)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook

from services.registry_bridge.deliver import LEASE, Deliverer
from services.registry_bridge.webhook import SCHEDULE
from shared.ledger import Ledger, deliveries
from shared.notices import NoticeType
from tests import ledgers
from tests.ledgers import HandClock, put_config

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
DEADLINE_S = 20.0
MODEL = '[models.delays]\nrepository = "file:///nowhere/delays.git"\n'
HOOK = """
[[subscriptions]]
name = "{name}"
url = "http://127.0.0.1:{port}/{name}"
secret = "env:{secret}"
allow_private = true
types = ["*"]
"""


@dataclass
class Consumers:
    """A real HTTP server; each path is a consumer, which answers what `answers` says for it, or 204."""

    server: ThreadingHTTPServer
    heard: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answers: dict[str, Callable[[BaseHTTPRequestHandler], object]] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def ids(self, name: str) -> list[str]:
        return [headers["webhook-id"] for path, headers, _ in list(self.heard) if path == f"/{name}"]


@pytest.fixture
def consumers() -> Iterator[Consumers]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            known.heard.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            known.answers.get(self.path.strip("/"), status(204))(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        known = Consumers(server)
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield known
        server.shutdown()
        thread.join()


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], object]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    return answer


@dataclass
class Post:
    """A ledger whose notices two consumers want, and a deliverer for it."""

    ledger: Ledger
    clock: HandClock
    deliverer: Deliverer
    consumers: Consumers

    def config(self, *names: str, secret: str = "HOOK_SECRET") -> None:
        hooks = [HOOK.format(name=name, port=self.consumers.port, secret=secret) for name in names]
        put_config(self.ledger, MODEL + "".join(hooks))

    def tell(self, **data: Any) -> int:
        with self.ledger.write() as tx:
            return deliveries.tell(tx, NoticeType.RUN_FAILED, "delays", "delays", data)

    def rows(self, name: str) -> list[Any]:
        """The consumer's deliveries, oldest first."""
        with self.ledger.read() as tx:
            found = deliveries.find_all(tx, state=None, subject=None, after=None, limit=99)
        return [row for row in reversed(found) if row.subscription == name]

    def send(self, done: Callable[[], bool]) -> None:
        """Send what is due until the condition holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            self.deliverer.send_due()
            assert time.monotonic() < deadline, self.consumers.heard
            time.sleep(0.002)

    def pause(self) -> float:
        """Seconds until the next delivery is due, as soon as nobody is busy."""
        deadline = time.monotonic() + DEADLINE_S
        while not (pause := self.deliverer.send_due()):
            assert time.monotonic() < deadline, self.consumers.heard
        return pause

    def settled(self, name: str) -> Callable[[], bool]:
        """Whether nothing is left for the consumer that is due now."""
        return lambda: all(row.state != "pending" or row.due_at > self.clock.now() for row in self.rows(name))


@pytest.fixture
def post(consumers: Consumers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    ledger, clock = ledgers.in_memory(MODEL)
    clock.at = datetime.now(UTC)
    deliverer = Deliverer(ledger, random.Random(1))
    made = Post(ledger, clock, deliverer, consumers)
    made.config("shop", "page")
    yield made
    made.send(lambda: made.settled("shop")() and made.settled("page")())
    deliverer.stop()
    ledger.close()


def test_every_consumer_gets_the_signed_notice_once(post: Post) -> None:
    post.tell(run=7)
    post.send(lambda: post.settled("shop")() and post.settled("page")())
    assert post.deliverer.send_due() is None
    assert sorted(path for path, _, _ in post.consumers.heard) == ["/page", "/shop"]
    for _, headers, body in post.consumers.heard:
        told = Webhook(SECRET).verify(body, headers)
        assert (told["type"], told["sequence"], told["data"]) == ("run.failed", "1", {"run": 7})
    (row,) = post.rows("shop")
    assert (row.state, row.answer, row.attempts, row.id) == ("delivered", 204, 1, post.consumers.ids("shop")[0])


def test_one_consumer_gets_its_notices_in_order(post: Post) -> None:
    for number in range(20):
        post.tell(run=number)
    post.send(post.settled("shop"))
    assert post.consumers.ids("shop") == [row.id for row in post.rows("shop")]


def test_a_consumer_that_hangs_does_not_hold_up_another(post: Post) -> None:
    release = threading.Event()
    post.consumers.answers["shop"] = lambda request: (release.wait(DEADLINE_S), status(204)(request))
    for number in range(3):
        post.tell(run=number)
    post.send(post.settled("page"))
    assert (len(post.consumers.ids("page")), len(post.consumers.ids("shop"))) == (3, 1)
    post.tell(run=4)
    post.send(post.settled("page"))
    release.set()
    post.send(post.settled("shop"))
    assert len(set(post.consumers.ids("shop"))) == 4


def test_thirty_consumers_that_hang_at_once_hold_up_no_other(post: Post) -> None:
    release, hanging = threading.Event(), [f"hangs-{number}" for number in range(30)]
    for name in hanging:
        post.consumers.answers[name] = lambda request: (release.wait(DEADLINE_S), status(204)(request))
    post.config(*hanging, "shop", "page")
    for number in range(4):
        post.tell(run=number)
    post.send(post.settled("page"))
    assert len(post.consumers.ids("page")) == 4
    post.send(lambda: all(len(post.consumers.ids(name)) == 1 for name in hanging))
    release.set()
    post.send(lambda: all(post.settled(name)() for name in hanging))


def test_a_consumer_that_fails_is_tried_again_with_the_same_id_after_its_pause(post: Post) -> None:
    post.consumers.answers["shop"] = status(503)
    post.tell(run=1)
    post.send(lambda: post.settled("shop")() and post.settled("page")())
    (row,) = post.rows("shop")
    assert (row.state, row.attempts, row.answer) == ("pending", 1, 503)
    pause = post.pause()
    assert 4.0 <= pause <= 6.0
    del post.consumers.answers["shop"]
    post.clock.forward(seconds=pause)
    post.send(post.settled("shop"))
    first, second = post.consumers.ids("shop")
    assert (first == second, post.rows("shop")[0].state) == (True, "delivered")


def test_a_consumer_that_never_answers_well_is_given_up_after_ten_tries(post: Post) -> None:
    post.config("shop")
    post.consumers.answers["shop"] = status(500)
    post.tell(run=1)
    for _ in range(len(SCHEDULE) + 1):
        post.send(post.settled("shop"))
        post.clock.forward(hours=30)
    (row,) = post.rows("shop")
    assert (row.state, row.attempts, len(post.consumers.ids("shop"))) == ("failed", 10, 10)
    with post.ledger.write() as tx:
        deliveries.replay(tx, row.id)
    del post.consumers.answers["shop"]
    post.send(post.settled("shop"))
    assert post.rows("shop")[0].state == "delivered"


def test_a_consumer_may_ask_for_a_longer_pause_and_not_for_a_shorter_one(post: Post) -> None:
    post.consumers.answers |= {"shop": status(429, retry_after="3600"), "page": status(429, retry_after="0")}
    post.tell(run=1)
    post.send(lambda: post.settled("shop")() and post.settled("page")())
    assert post.rows("shop")[0].due_at == post.clock.now() + timedelta(hours=1)
    assert post.rows("page")[0].due_at >= post.clock.now() + timedelta(seconds=4)


def test_a_consumer_that_is_gone_is_not_tried_again(post: Post) -> None:
    post.consumers.answers["shop"] = status(410)
    post.tell(run=1)
    post.send(post.settled("shop"))
    assert [(row.state, row.answer) for row in post.rows("shop")] == [("failed", 410)]


def test_a_consumer_without_a_secret_is_told_of_and_tried_later(post: Post) -> None:
    post.config("shop", secret="UNSET_SECRET")
    post.tell(run=1)
    post.send(post.settled("shop"))
    (row,) = post.rows("shop")
    assert (row.state, "UNSET_SECRET is not set" in row.error, post.consumers.heard) == ("pending", True, [])


def test_what_was_meant_for_a_removed_subscription_ends_unsent(post: Post) -> None:
    post.tell(run=1)
    post.config("page")
    post.send(lambda: post.settled("shop")() and post.settled("page")())
    assert ([row.state for row in post.rows("shop")], post.consumers.ids("shop")) == (["failed"], [])
    assert len(post.consumers.ids("page")) == 1


def test_a_notice_that_cannot_be_sent_does_not_hold_up_the_next(post: Post) -> None:
    """The message of an author's error may hold half of a character, which no JSON body can carry."""
    post.tell(run=1, message="\ud800")
    post.tell(run=2)
    post.send(lambda: len(post.rows("shop")) == 2 and post.rows("shop")[1].state == "delivered")
    post.send(post.settled("shop"))
    assert [(row.state, row.attempts) for row in post.rows("shop")] == [("pending", 1), ("delivered", 1)]


def test_two_bridges_send_each_notice_once(post: Post) -> None:
    other = Deliverer(post.ledger)
    for number in range(20):
        post.tell(run=number)
    post.send(lambda: bool(other.send_due()) or post.settled("shop")())
    post.send(lambda: post.settled("shop")() and post.settled("page")())
    other.stop()
    for name in ("shop", "page"):
        assert sorted(post.consumers.ids(name)) == sorted(row.id for row in post.rows(name))


def test_what_waits_behind_slow_answers_is_not_sent_by_another(post: Post) -> None:
    other = Deliverer(post.ledger)

    def slow(request: BaseHTTPRequestHandler) -> None:
        post.clock.forward(seconds=15)
        other.send_due()
        status(204)(request)

    post.config("shop")
    post.consumers.answers["shop"] = slow
    for number in range(4):
        post.tell(run=number)
    post.send(post.settled("shop"))
    other.stop()
    assert post.consumers.ids("shop") == [row.id for row in post.rows("shop")]


def test_what_a_dead_bridge_had_claimed_is_sent_by_another(post: Post) -> None:
    post.config("shop")
    post.tell(run=1)
    with post.ledger.write() as tx:
        (claimed,) = deliveries.claim_due(tx, LEASE, 9)
    assert post.deliverer.send_due() == LEASE.total_seconds()
    post.clock.forward(seconds=LEASE.total_seconds() + 1)
    post.send(post.settled("shop"))
    assert post.consumers.ids("shop") == [claimed.id]
