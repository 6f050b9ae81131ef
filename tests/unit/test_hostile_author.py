"""What an author's code may leave behind or say, by malice or by mistake: a worker neither hangs, nor loses its claim, nor leaves a child."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest
from headrace.warded import Ending

from services.trainer import bundle, child
from services.trainer.checkout import Prepared
from services.trainer.failures import AttemptFailed
from services.trainer.heart import Heart
from services.trainer.told import Told
from shared.errors import Refused, Unavailable
from shared.manifest import MAX_BYTES, read_tree
from tests.children import PATIENCE_S, train, within

EVENTS = {
    "a FIFO": "os.unlink(events)\nos.mkfifo(events)",
    "a directory": "os.unlink(events)\nos.mkdir(events)",
    "a link to itself": "os.unlink(events)\nos.symlink(events, events)",
    "a number without end": "open(events, 'a').write('{\"event\": \"progress\", \"fraction\": 1' + '0' * 400 + '}\\n')",
    "brackets without end": "open(events, 'a').write('[' * 200_000 + '\\n')",
}


@pytest.mark.parametrize("made", EVENTS.values(), ids=EVENTS.keys())
def test_events_that_are_no_events_cost_the_progress_and_nothing_else(tmp_path: Path, made: str) -> None:
    """The platform looks at the events every 0.1 s; and once more at its end; the child lives for 0.3 s of CPU time."""
    body = f"events = str(job.scratch.parent / 'events.jsonl')\n{made}\nimport time\nwhile time.process_time() < 0.3: pass\nos._exit(3)"
    with pytest.raises(AttemptFailed, match="exit code 3"):
        train(tmp_path, body)


@pytest.mark.parametrize("kind", ["fifo", "directory", "loop"])
def test_a_result_that_is_no_file_is_no_result(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "result.json"
    {"fifo": os.mkfifo, "directory": os.mkdir, "loop": lambda at: os.symlink(at, at)}[kind](path)
    with pytest.raises(AttemptFailed, match="left no result"):
        within(lambda: child._read_result(path, Ending(0, None), 0))


def test_a_message_that_is_no_text_is_made_one(tmp_path: Path) -> None:
    """Such as the name of a file in another encoding: it could be written neither into a log nor into an answer."""
    with pytest.raises(AttemptFailed) as failed:
        train(tmp_path, "raise ValueError(os.fsdecode(b'caf\\xe9'))")
    assert "caf?" in failed.value.failure.message
    failed.value.failure.message.encode()


def test_a_note_that_is_no_text_is_made_one(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"event": "progress", "fraction": 0.5, "note": "caf\udce9"}) + "\n")
    assert child.Events(events).read() == Told(0.5, "caf?")


@pytest.mark.parametrize("name", ["requirements.txt", "log.txt", "code/headrace_loader.py", "model/pipe"])
def test_a_pipe_in_the_output_is_refused(tmp_path: Path, name: str) -> None:
    """Writing into it would wait for a reader for ever."""
    output = tmp_path / "output"
    (output / name).parent.mkdir(parents=True)
    os.mkfifo(output / name)
    with pytest.raises(AttemptFailed, match="plain files only"):
        within(lambda: bundle.complete(output, Prepared(tmp_path / "checkout", Path(sys.executable), ""), b""))


def test_a_hard_link_in_the_output_is_refused(tmp_path: Path) -> None:
    """It could lead to a file that the worker may read and the author's code may not."""
    (tmp_path / "secret").write_text("the ledger's password")
    (tmp_path / "output" / "model").mkdir(parents=True)
    os.link(tmp_path / "secret", tmp_path / "output" / "model" / "weights")
    with pytest.raises(AttemptFailed, match="plain files only"):
        bundle.complete(tmp_path / "output", Prepared(tmp_path / "checkout", Path(sys.executable), ""), b"")


def test_the_platforms_own_files_take_the_place_of_the_authors(tmp_path: Path) -> None:
    output, checkout = tmp_path / "output", tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "small.py").write_text("x = 1\n")
    for name in ("requirements.txt/x", "log.txt/x", "source/small.py/x"):
        (output / name).mkdir(parents=True)
    (output / "code").write_text("a file")
    bundle.complete(output, Prepared(checkout, Path(sys.executable), "a==1\n"), b"said")
    assert (output / "requirements.txt").read_text() == "a==1\n"
    assert (output / "log.txt").read_bytes() == b"said"
    assert (output / "source" / "small.py").read_text() == "x = 1\n"


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(MAX_BYTES * 200)
    with pytest.raises(Refused, match="bytes; at most"):
        within(lambda: read_tree(tmp_path))


def test_a_heart_outlives_whatever_a_beat_raises() -> None:
    errors = [ValueError("a note that no database takes"), Unavailable("away")]
    beaten = threading.Event()

    def beat(_: Told) -> str | None:
        if errors:
            raise errors.pop(0)
        beaten.set()
        return None

    with Heart(beat, 0.001, threading.Event()):
        assert beaten.wait(PATIENCE_S)
