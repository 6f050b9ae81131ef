"""Warm parents: who is forked of which, and that nothing goes from one attempt into another, nor outlives its owner."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from headrace import job
from headrace.outcome import understand
from headrace.warded import Confined, Ending, Warded
from headrace.warm_parent import Unfit, WarmParent

from services.trainer import warm
from services.trainer.disk import Disk
from services.trainer.limits import descendants
from services.trainer.warm import Kept, Parents
from tests.children import is_zombie
from tests.contract.test_warden import eventually

WAITING = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
CONFINED = Confined(1024, 10**9)
PYTHON = Path(sys.executable)
TELLS = """
import json, os, tempfile
import numpy
def train(job):
    (job.scratch / "told.json").write_text(json.dumps({
        "variables": sorted(os.environ), "temporary": tempfile.gettempdir(), "chance": float(numpy.random.rand()),
        "leaked": getattr(numpy, "leaked", None), "argv": os.sys.argv, "main": os.sys.modules["__main__"].__file__,
        "cpus": sorted(os.sched_getaffinity(0)),
    }))
    numpy.leaked = "of another attempt"
    return {"a": 1}
"""


@pytest.fixture
def parents(tmp_path: Path) -> Iterator[Parents]:
    made = Parents(2, Disk(tmp_path / "trainer"))
    yield made
    made.close()


class Attempt:
    """A job of its own scratch directory, with an author's module."""

    def __init__(self, place: Path, name: str, source: str = TELLS) -> None:
        self.scratch, roots = place / name, place / name / "src"
        (self.scratch / "output").mkdir(parents=True)
        roots.mkdir()
        (roots / "author.py").write_text(source)
        described: dict[str, Any] = {
            "action": "train", "run": "1", "model": "m", "source_roots": [str(roots)], "train": "author:train", "evaluate": None,
            "predict": "builtins:id", "load": None, "loader": str(job.LOADER), "output": str(self.scratch / "output"),
            "scratch": str(self.scratch), "datasets": {}, "parameters": {}, "resume": None,
        }  # fmt: skip
        self.file, self.roots = job.write(described, self.scratch), [str(roots)]
        self.env = job.variables(PYTHON, "1", self.scratch)

    def fork(self, parent: WarmParent, **more: str) -> Warded:
        log = self.scratch / "output.log"
        return parent.fork(
            self.file, log=log, env={**self.env, **more}, cwd=self.scratch, cpus=[min(os.sched_getaffinity(0))]
        )

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads((self.scratch / "work" / "told.json").read_text()))


def one(
    held: ExitStack,
    parents: Parents,
    attempt: Attempt,
    model: str = "m",
    env: Mapping[str, str] | None = None,
    confined: Confined = CONFINED,
) -> Kept | None:
    env = attempt.env if env is None else env
    return held.enter_context(parents.one(PYTHON, model, attempt.roots, env, confined, lambda: None))


def test_the_second_attempt_starts_a_parent_and_later_ones_are_forks_of_it(tmp_path: Path, parents: Parents) -> None:
    first, second, third = (Attempt(tmp_path, name) for name in ("first", "second", "third"))
    with ExitStack() as held:
        assert one(held, parents, first) is None, "nobody knows yet what it imports"
    parents.saw(PYTHON, "m", [], ("numpy.random",))
    told = []
    for attempt in (second, third):
        with ExitStack() as held:
            kept = one(held, parents, attempt)
            assert kept is not None
            ending = attempt.fork(kept.parent, MINE=attempt.scratch.name).wait(30)
            assert ending == Ending(0, None), (attempt.scratch / "output.log").read_text()
        told.append(attempt.told)
    assert len(parents.pids) == 1
    result = json.loads((third.scratch / "result.json").read_text())
    assert "numpy" not in result["imported"], "it was there"
    for attempt, one_told in zip((second, third), told, strict=True):
        assert one_told["leaked"] is None
        assert one_told["temporary"] == str(attempt.scratch / "home")
        assert one_told["argv"] == [str(job.HARNESS), str(attempt.file)]
        assert one_told["main"] == str(job.HARNESS)
        assert set(one_told["variables"]) == {*attempt.env, "MINE", *WAITING}
        assert one_told["cpus"] == [min(os.sched_getaffinity(0))]
    assert told[0]["chance"] != told[1]["chance"], "each its own random numbers"


def test_a_parent_serves_whoever_would_have_found_the_same(tmp_path: Path, parents: Parents) -> None:
    attempt = Attempt(tmp_path, "one")
    for model, modules in (("m", ("json",)), ("alike", ("json",)), ("other", ("json", "csv"))):
        parents.saw(PYTHON, model, [], modules)
    with ExitStack() as held:
        first = one(held, parents, attempt)
        assert first is not None
        alike = one(held, parents, attempt, "alike", {**attempt.env, "HOME": "/", "OMP_NUM_THREADS": "4"})
        assert alike is first
        assert one(held, parents, attempt, "m", {**attempt.env, "KERAS_BACKEND": "torch"}) is not first
    for env, confined in ((attempt.env, replace(CONFINED, open_files=64)), ({**attempt.env, "A": "b"}, CONFINED)):
        with ExitStack() as held:
            assert one(held, parents, attempt, "m", env, confined) is not first
    with ExitStack() as held:
        assert one(held, parents, attempt, "other") is not first
    assert len(parents.pids) == 2, "the bound holds: those not used for longest have made room"


def test_of_a_model_that_is_new_here_another_of_the_same_code_tells_what_it_will_import(
    tmp_path: Path, parents: Parents
) -> None:
    attempt, elsewhere = Attempt(tmp_path, "one"), Attempt(tmp_path, "two")
    parents.saw(PYTHON, "m", attempt.roots, ("json",))
    with ExitStack() as held:
        assert one(held, parents, attempt, "new") is one(held, parents, attempt, "m")
        assert one(held, parents, elsewhere, "new") is None
        assert one(held, parents, elsewhere, "m") is one(held, parents, attempt, "m"), "its next release"


def test_where_no_parent_may_serve_the_job_is_executed(tmp_path: Path, parents: Parents) -> None:
    attempt = Attempt(tmp_path, "one")
    parents.saw(PYTHON, "m", [], ("json", "numpy"))
    with ExitStack() as held:
        assert one(held, parents, attempt, env={**attempt.env, "CUDA_VISIBLE_DEVICES": "0"}) is None
    asked = Parents(1, Disk(tmp_path / "asked"), with_gpus=True)
    asked.saw(PYTHON, "m", [], ("json",))
    with ExitStack() as held:
        assert one(held, asked, attempt, env={**attempt.env, "CUDA_VISIBLE_DEVICES": "0"}) is not None
    asked.close()
    for early in (
        {"TZ": "Asia/Tokyo"},
        {"LD_LIBRARY_PATH": "/opt"},
        {"LANG": "de_DE.UTF-8"},
    ):  # a parent is told too late
        with ExitStack() as held:
            assert one(held, parents, attempt, env={**attempt.env, **early}) is None
    (Path(attempt.roots[0]) / "json.py").write_text("")  # the standard library comes first anyway
    with ExitStack() as held:
        assert one(held, parents, attempt) is not None
    (Path(attempt.roots[0]) / "numpy").mkdir()
    with ExitStack() as held:
        assert one(held, parents, attempt) is None, "the author's own numpy comes before the installed one"
    off = Parents(0, Disk(tmp_path / "off"))
    off.saw(PYTHON, "m", [], ("json",))
    with ExitStack() as held:
        assert one(held, off, attempt) is None


def test_with_all_in_use_a_job_is_executed_rather_than_wait(tmp_path: Path) -> None:
    attempt, parents = Attempt(tmp_path, "one"), Parents(1, Disk(tmp_path / "trainer"))
    parents.saw(PYTHON, "m", [], ("json",))
    with ExitStack() as held:
        assert one(held, parents, attempt) is not None
        assert one(held, parents, attempt, env={**attempt.env, "A": "b"}) is None
    parents.close()


def test_two_who_ask_at_once_get_the_same_one(tmp_path: Path, parents: Parents) -> None:
    attempt, found = Attempt(tmp_path, "one"), []
    parents.saw(PYTHON, "m", [], ("numpy",))
    both = threading.Barrier(2)

    def ask() -> None:
        with ExitStack() as held:
            kept = one(held, parents, attempt)
            both.wait(30)
            found.append(kept)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1] is not None


@pytest.mark.parametrize("spent", ["uses", "age", "memory"])
def test_a_parent_is_used_for_so_long_and_no_longer(tmp_path: Path, parents: Parents, monkeypatch: pytest.MonkeyPatch, spent: str) -> None:  # fmt: skip
    attempt = Attempt(tmp_path, "one")
    parents.saw(PYTHON, "m", [], ("json",))
    name, value = {"uses": ("MOST_USES", 1), "age": ("MOST_AGE_S", 0.0), "memory": ("MEMORY_PART", 10**9)}[spent]
    monkeypatch.setattr(warm, name, value)
    with ExitStack() as held:
        first = one(held, parents, attempt)
    with ExitStack() as held:
        second = one(held, parents, attempt)
        assert first is not second
        assert first is not None
        eventually(lambda: not first.parent.is_alive)
    assert len(list((tmp_path / "trainer" / "scratch").iterdir())) <= 1


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Where an environment of its own keeps what is installed; its Python is `python_of` it."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    return next(environment.glob("lib/python*/site-packages"))


def python_of(packages: Path) -> Path:
    return packages.parents[2] / "bin" / "python"


def test_what_a_library_took_from_the_parent_s_surroundings_is_put_right(tmp_path: Path, packages: Path) -> None:
    (packages / "caches.py").write_text(
        "import os, tempfile\nos.environ['KMP_OWN'] = 'set by it'\nWHERE, TOLD = tempfile.gettempdir(), os.environ['TOLD']\n"
    )
    attempt = Attempt(
        tmp_path,
        "one",
        "import caches, os, tempfile\ndef train(job):\n    print(caches.TOLD, tempfile.gettempdir(), os.environ['KMP_OWN'])\n    return {}\n",
    )
    place = tmp_path / "parent"
    place.mkdir()
    parent = WarmParent.start(
        python_of(packages), ["caches"], {"TOLD": "in time", "TMPDIR": str(tmp_path)}, place, CONFINED, []
    )
    eventually(lambda: parent.ready(0.1))
    assert attempt.fork(parent).wait(30) == Ending(0, None)
    parent.close()
    assert (attempt.scratch / "output.log").read_text() == f"in time {attempt.env['TMPDIR']} set by it\n"


def test_a_model_whose_code_sets_variables_before_it_imports_is_executed(tmp_path: Path, parents: Parents) -> None:
    sets = "import os\nos.environ['KERAS_BACKEND'] = 'jax'\nimport csv\ndef train(job):\n    return {}\n"
    attempt = Attempt(tmp_path, "one", sets)
    argv = job.command(PYTHON, attempt.file)
    subprocess.run(argv, env=attempt.env, check=True, capture_output=True)
    result = understand((attempt.scratch / "result.json").read_bytes(), Ending(0, None), lambda: False)
    assert result.imported is None
    parents.saw(PYTHON, "m", attempt.roots, ("json",))
    parents.saw(PYTHON, "m", attempt.roots, result.imported)
    with ExitStack() as held:
        assert one(held, parents, attempt) is None


def test_what_starts_threads_is_never_forked(
    tmp_path: Path, parents: Parents, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, python = Attempt(tmp_path, "one"), python_of(packages)
    (packages / "threads.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    (packages / "child.py").write_text("import subprocess\nsubprocess.Popen(['sleep', '60'])\n")
    (packages / "refuses.py").write_text("raise ImportError('no backend')\n")
    (packages / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    (packages / "exits.py").write_text("import sys\nprint('this machine has no licence')\nsys.exit(3)\n")
    monkeypatch.setattr(warm, "START_S", 0.5)
    for name in ("threads", "child", "refuses", "hangs", "exits"):
        parents.saw(python, name, [], (name,))
        for _ in range(2):
            began = time.monotonic()
            with parents.one(python, name, attempt.roots, attempt.env, CONFINED, lambda: None) as kept:
                assert kept is None
        assert time.monotonic() - began < 0.3, "it is not tried a second time"
    assert parents.pids == []
    assert list((tmp_path / "trainer" / "scratch").iterdir()) == []


def test_a_stop_is_heard_while_a_parent_imports(tmp_path: Path, parents: Parents) -> None:
    attempt = Attempt(tmp_path, "one")
    parents.saw(PYTHON, "m", [], ("numpy",))

    def stop() -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError), parents.one(PYTHON, "m", attempt.roots, attempt.env, CONFINED, stop):
        pass
    assert parents.pids == []


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[WarmParent]:
    place = tmp_path / "parent"
    place.mkdir()
    started = WarmParent.start(PYTHON, ["json"], {"PASSWORD": "planted"}, place, CONFINED, ["OMP_NUM_THREADS"])
    eventually(lambda: started.ready(0.1))
    yield started
    started.close()


SLEEPS = """
import os, time
def train(job):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(300)
        os._exit(0)
    (job.scratch / "begun").write_text(str(os.getpid()))
    time.sleep(300)
"""


def begun(attempt: Attempt) -> int:
    said = attempt.scratch / "work" / "begun"
    eventually(lambda: said.exists() and said.read_text() != "")
    return int(said.read_text())


def test_forks_end_each_for_itself(tmp_path: Path, parent: WarmParent) -> None:
    attempts = [Attempt(tmp_path, name, SLEEPS) for name in ("one", "two")]
    first, second = (attempt.fork(parent) for attempt in attempts)
    for attempt in attempts:
        shown = Path(f"/proc/{begun(attempt)}/environ").read_bytes().split(b"\0")
        assert b"HEADRACE_RUN_ID=1" in shown, "as the audit looks for it"
        assert f"HOME={attempt.scratch}/home".encode() in shown
    assert first.kill() == Ending(None, signal.SIGKILL)
    assert [pid for pid in descendants(first.warden)[0] if not is_zombie(pid)] == []
    assert second.poll() is None
    assert second.terminate(10.0) == Ending(None, signal.SIGTERM)
    assert [pid for pid in descendants(parent.pid)[0] if not is_zombie(pid)] == []
    assert parent.is_alive


@pytest.mark.parametrize("victim", ["the parent", "the fork's warden"])
def test_where_one_of_them_is_killed_nothing_is_left_and_the_ending_is_told(tmp_path: Path, parent: WarmParent, victim: str) -> None:  # fmt: skip
    attempt = Attempt(tmp_path, "one", SLEEPS)
    child = attempt.fork(parent)
    tree = [begun(attempt), *descendants(child.warden)[0]]
    os.kill(parent.pid if victim == "the parent" else child.warden, signal.SIGKILL)
    assert child.wait(20) == Ending(None, None)
    eventually(lambda: all(map(is_zombie, tree)))
    eventually(lambda: not parent.is_alive)
    with pytest.raises(OSError, match=r"Broken pipe|gone|not connected|Bad file"):
        Attempt(tmp_path, "two").fork(parent)


def test_the_death_of_the_owner_is_that_of_all(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "one", SLEEPS)
    code = f"""
import sys, time
from pathlib import Path
from headrace.warded import Confined
from headrace.warm_parent import WarmParent
place = Path({str(tmp_path)!r})
parent = WarmParent.start(Path(sys.executable), ["json"], {{}}, place, Confined(1024, 10**9), [])
while not parent.ready(1): pass
child = parent.fork(Path({str(attempt.file)!r}), log=place / "log", env={attempt.env!r}, cwd=place)
print(parent.pid, child.warden, flush=True)
time.sleep(300)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [*map(int, owner.stdout.readline().split()), begun(attempt)]
    pids += [pid for head in pids for pid in descendants(head)[0]]
    owner.kill()
    owner.wait()
    owner.stdout.close()
    eventually(lambda: all(map(is_zombie, pids)))


def test_neither_parent_nor_warden_can_be_looked_into_by_a_fork(tmp_path: Path, parent: WarmParent) -> None:
    looks = f"""
import os
def train(job):
    print("mine", os.environ.get("PASSWORD"))
    for pid in (os.getppid(), {parent.pid}):
        for name in ("environ", "mem"):
            try:
                with open("/proc/%d/%s" % (pid, name), "rb") as stream:
                    print("read", name, stream.read() if name == "environ" else b"MEMORY CAN BE READ")
            except OSError as error:
                print("refused", name)
    return {{"a": 1}}
"""
    attempt = Attempt(tmp_path, "one", looks)
    assert attempt.fork(parent).wait(30) == Ending(0, None)
    said = (attempt.scratch / "output.log").read_text()
    assert "mine None" in said, "a fork has the variables that it is given"
    assert said.count("environ") == said.count(" mem") == 2, said
    assert "planted" not in said
    assert "MEMORY CAN BE READ" not in said


def test_a_parent_that_ends_while_it_imports_says_why(tmp_path: Path) -> None:
    started = WarmParent.start(PYTHON, ["json", "antigravity"], {}, tmp_path, replace(CONFINED, file_bytes=1), [])
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(Unfit, match="killed by SIGKILL"):
        eventually(lambda: started.ready(0.1))
    started.close()


OPENMP = """
import json
import numpy
import pyarrow.compute
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_info
def train(job):
    x = numpy.random.rand(4000, 4)
    table = pyarrow.table({"x": x[:, 0]}).sort_by("x")
    assert pyarrow.compute.min(table["x"]).as_py() == x[:, 0].min()
    model = HistGradientBoostingClassifier(max_iter=5).fit(x, x[:, 0] > 0.5)
    (job.scratch / "told.json").write_text(json.dumps({one["internal_api"]: one["num_threads"] for one in threadpool_info()}))
    return {"score": float(model.score(x, x[:, 0] > 0.5))}
"""


def test_a_fork_has_the_threads_that_it_is_given_and_none_hangs(tmp_path: Path) -> None:
    """An OpenMP that has run in a parent with several threads would wait in each fork for ever for threads that are not there."""
    place = tmp_path / "parent"
    place.mkdir()
    modules = ["sklearn.ensemble", "threadpoolctl", "pyarrow.compute"]
    parent = WarmParent.start(
        PYTHON, modules, {}, place, CONFINED, [f"{one}_NUM_THREADS" for one in ("OMP", "OPENBLAS")]
    )
    try:
        while not parent.ready(60):
            pass
        for name, threads in (("alone", 1), ("in threes", 3)):
            attempt = Attempt(tmp_path, name, OPENMP)
            told = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
            assert attempt.fork(parent, **told).wait(60) == Ending(0, None), (
                attempt.scratch / "output.log"
            ).read_text()
            assert attempt.told == {"openmp": threads, "openblas": threads}
    finally:
        parent.close()
        shutil.rmtree(place)
