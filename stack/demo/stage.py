"""The stage of the demo: everything is set up, the story is played, and all of it is taken down again."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from headrace.connection import Connection
from rich.console import Console

from shared.errors import HeadraceError
from stack.demo.author import Author
from stack.demo.consumer import Callers, Consumer
from stack.demo.flights import Flights
from stack.demo.report import report
from stack.demo.show import Show
from stack.demo.story import NotSeen, Story
from stack.up import Stack

MODEL = "flight-delays"
CONFIG = """\
# What an operator writes: where data arrives, what is trained on it, who is told.
[datasets.flights]
source = {{ kind = "sql", url = "env:FLIGHTS_URL", table = "flights", cursor = "id" }}
holdout = {{ newest = "10%", max_rows = 20_000 }}

[models.flight-delays]
repository = "{repository}"
release_poll = "1s"
policy = {{ min_rows = 1000, quiet = "{quiet}" }}
pass_env = ["FLIGHTS_URL"]

[compute_classes.compute-optimized]
slots = 1

[[subscriptions]]
name = "storefront"
url = "http://127.0.0.1:{hook_port}/hooks/models"
secret = "env:STOREFRONT_HOOK_SECRET"
allow_private = true
"""


def play(state: Path) -> int:
    """The whole demo; 0 when all was seen, 1 when something was not, 130 after Ctrl-C. Leaves no process."""
    console = Console(width=None if sys.stdout.isatty() else 132)
    show = Show(console)
    try:
        return _play(state.absolute(), show)
    except (HeadraceError, NotSeen) as error:
        show.line(str(error), "[red]✗[/]")
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped")
        return 130


def _play(state: Path, show: Show) -> int:
    show.chapter("The stage: real servers on this machine, nothing installed outside this directory")
    _clear(state)
    with show.working("reading 336,776 flights"):
        flights = Flights(state / "flights.db")
    show.line(f"{flights.total:,} flights of New York 2013 read; table flights in {flights.database.name} is empty")
    author = Author(state / "repository")
    author.release("1.0.0", "First release")
    show.line("examples/flights is a git repository now, release v1.0.0")
    consumer, port = Consumer(state / "consumer", state / "stack" / "trainer" / "uv-cache"), _free_port()
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    os.environ |= {"FLIGHTS_URL": f"sqlite:///{flights.database}", "STOREFRONT_HOOK_SECRET": secret}
    config = state / "headrace.toml"
    config.write_text(CONFIG.format(repository=author.url, quiet="2s", hook_port=port))
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(consumer.build, author.place)
        with Stack(config, state / "stack", show.console) as stack:
            return _perform(stack, show, flights, author, consumer, building, port, secret)


def _perform(
    stack: Stack,
    show: Show,
    flights: Flights,
    author: Author,
    consumer: Consumer,
    building: Future[None],
    port: int,
    secret: str,
) -> int:
    token = Path(stack.endpoints.token_file).read_text().strip()
    api = Connection(stack.endpoints.api, token)
    show.line("valkey, MLflow, Flower, api, watcher, bridge and a trainer per compute class are up")
    with show.working("building the consumer's own environment"):
        building.result()
    callers = Callers(f"http://127.0.0.1:{port}", flights.example())
    consumer.start(port, stack.endpoints.api, token, secret)
    callers.start()
    try:
        story = Story(api, show, flights, author, consumer, callers)
        story.tell()
        complete = report(story, show)
        if complete and sys.stdin.isatty() and sys.stdout.isatty():
            _stay(stack, show)
        return 0 if complete else 1
    finally:
        callers.stop()
        consumer.stop()


def _stay(stack: Stack, show: Show) -> None:
    stack.terminal.ready(stack.endpoints, stack.state.root)
    show.console.print("Look around; Enter or Ctrl-C stops everything.")
    done = threading.Event()
    threading.Thread(target=_wait_for_enter, args=(done,), daemon=True).start()
    try:
        stack.wait(done)
    except KeyboardInterrupt:
        return


def _wait_for_enter(done: threading.Event) -> None:
    sys.stdin.readline()
    done.set()


def _clear(state: Path) -> None:
    """Begin afresh; what an earlier demo has built (environments, uv's cache) is kept, so that the next one is quick."""
    kept = {"uv-cache", "environments", "mlflow-template"}
    for path in (state / "flights.db", state / "flights.db-wal", state / "flights.db-shm"):
        path.unlink(missing_ok=True)
    for name in ("repository", "consumer"):
        shutil.rmtree(state / name, ignore_errors=True)
    stack = state / "stack"
    for path in stack.iterdir() if stack.exists() else ():
        if path.name == "trainer":
            for part in path.iterdir():
                if part.name not in kept:
                    shutil.rmtree(part, ignore_errors=True)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock":
            path.unlink()
    state.mkdir(parents=True, exist_ok=True, mode=0o700)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
