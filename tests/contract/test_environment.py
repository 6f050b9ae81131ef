"""Environments from a real index: what is refused, what is shared, what is left when a builder is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from headrace.environment import EnvironmentFailed, EnvironmentRefused, Environments, Recipe, find_uv
from headrace.requirements import satisfies

SIX = "six==1.17.0"
PROJECT = """
[project]
name = "shop"
version = "1.0.0"
requires-python = ">=3.11"
dependencies = ["six", "iniconfig; python_version > '3'"]

[dependency-groups]
dev = ["colorama"]
"""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of wheels for the whole file: the index is asked once."""
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture
def environments(tmp_path: Path, cache: Path) -> Environments:
    return Environments(tmp_path / "environments", find_uv(), cache)


def checkout(tmp_path: Path, **files: str) -> Path:
    """A directory with files: `pyproject_toml="…"` is pyproject.toml."""
    place = tmp_path / "checkout"
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", "/").replace("_", ".")).write_text(text)
    return place


def lock(place: Path, cache: Path) -> Path:
    environment = {**os.environ, "UV_CACHE_DIR": str(cache)}
    subprocess.run([find_uv(), "lock", "--no-config"], cwd=place, check=True, capture_output=True, env=environment)
    return place


def packages(environment: Path) -> set[str]:
    code = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    done = subprocess.run([environment / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def finished(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.name != "locks" and not path.name.startswith(".")}


def eventually(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


def test_a_locked_repository_gets_exactly_what_it_locks(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    place = lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)
    locked = environments.lock(Recipe(place))
    assert "six==" in locked.text
    assert "iniconfig==" in locked.text
    assert "colorama" not in locked.text
    assert "--hash=sha256:" in locked.text
    environment = environments.build(locked)
    assert packages(environment) == {"six", "iniconfig"}


def test_an_environment_is_compiled_marked_and_read_only(environments: Environments, tmp_path: Path) -> None:
    environment = environments.build(environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX))))
    code = "import six; print(six.__cached__, six.with_metaclass.__code__.co_filename)"
    done = subprocess.run([environment / "bin/python", "-I", "-c", code], capture_output=True, text=True, check=True)
    compiled, source = done.stdout.split()
    assert Path(compiled).is_file()
    assert Path(source).is_relative_to(environment), (
        "tracebacks must show the finished place, not the one where it was built"
    )
    for path in [environment, *environment.rglob("*")]:
        assert path.is_symlink() or not stat.S_IMODE(path.stat().st_mode) & 0o222, f"{path} can be written"
    assert json.loads((environment / "headrace-environment.json").read_text())["digest"] == environment.name


def test_a_resolution_is_kept_and_names_what_defines_it(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    place = checkout(tmp_path, requirements_txt="six  # any\n")
    first = environments.lock(Recipe(place))
    again = Environments(tmp_path / "environments", "/no/uv/any/more", cache)
    again._probes.update(environments._probes)
    assert again.lock(Recipe(place)) == first, "the kept resolution needs no uv"
    (place / "requirements.txt").write_text("six<1.17")
    assert environments.lock(Recipe(place)).digest != first.digest
    (place / "requirements.txt").write_text("six")
    assert environments.lock(Recipe(place, build=True)).digest != first.digest


def test_two_repositories_with_the_same_lock_share_an_environment(environments: Environments, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = environments.lock(Recipe(checkout(tmp_path / "a", requirements_txt=SIX)))
    other = environments.lock(Recipe(checkout(tmp_path / "b", requirements_txt=f"# pinned\n{SIX}")))
    assert one.digest == other.digest


def test_the_lock_is_preferred_to_the_project_and_that_to_the_list(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    place = checkout(tmp_path, pyproject_toml=PROJECT.replace('"six", ', ""), requirements_txt="colorama")
    assert "iniconfig==" in environments.lock(Recipe(place)).text
    lock(place, cache)
    assert "colorama" not in environments.lock(Recipe(place)).text
    (place / "uv.lock").unlink()
    (place / "pyproject.toml").write_text('[project]\nname = "a"\nversion = "1"\ndynamic = ["dependencies"]\n')
    assert "colorama==" in environments.lock(Recipe(place)).text


def test_no_dependencies_are_an_environment_too(environments: Environments, tmp_path: Path) -> None:
    project = '[project]\nname = "a"\nversion = "1"\ndependencies = []\n'
    environment = environments.build(environments.lock(Recipe(checkout(tmp_path, pyproject_toml=project))))
    assert packages(environment) == set()


@pytest.mark.parametrize(
    "line",
    [
        "six @ https://example.com/six-1.17.0-py2.py3-none-any.whl",
        "https://example.com/six-1.17.0.tar.gz",
        "git+https://example.com/six.git",
        "six @ git+ssh://git@example.com/six.git",
        "./vendored",
        "../outside",
        "/etc/passwd",
        "-e .",
        "-r other.txt",
        "-c constraints.txt",
        "--index-url https://evil.example.com/simple",
        "--extra-index-url=https://evil.example.com/simple",
        "--find-links /tmp",
        "six --config-settings x=y",
        "six; python_version > '3' --index-url https://evil.example.com/simple",
        "six @ file:///etc/passwd",
        "six>=1 --hash=md5:0",
    ],
)
def test_a_requirement_that_names_a_place_is_refused(environments: Environments, tmp_path: Path, line: str) -> None:
    place = checkout(tmp_path, requirements_txt=f"iniconfig\n{line}\n")
    with pytest.raises(EnvironmentRefused, match="operator's index"):
        environments.lock(Recipe(place))
    shutil.rmtree(place)
    project = f"[project]\nname = 'a'\nversion = '1'\ndependencies = [{json.dumps(line)}]\n"
    with pytest.raises(EnvironmentRefused, match="operator's index"):
        environments.lock(Recipe(checkout(tmp_path, pyproject_toml=project)))


def test_a_second_line_hidden_in_a_requirement_is_refused(environments: Environments, tmp_path: Path) -> None:
    for hidden in (r"six\n--index-url https://evil.example.com/simple", r"six;\npython_version>'3'", r"six\u2028-e ."):
        project = f"[project]\nname = 'a'\nversion = '1'\ndependencies = [\"{hidden}\"]\n"
        with pytest.raises(EnvironmentRefused, match="operator's index"):
            environments.lock(Recipe(checkout(tmp_path, pyproject_toml=project)))


@pytest.mark.parametrize(
    "source",
    [
        '{ url = "https://example.com/six-1.17.0-py2.py3-none-any.whl" }',
        '{ git = "https://example.com/six.git?rev=0123456789012345678901234567890123456789#0123456789012345678901234567890123456789" }',
        '{ directory = "vendored" }',
        '{ editable = "vendored" }',
        '{ path = "six-1.17.0-py2.py3-none-any.whl" }',
    ],
)
def test_a_lock_with_a_package_from_elsewhere_is_refused(
    environments: Environments, tmp_path: Path, cache: Path, source: str
) -> None:
    place = lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)
    written = (place / "uv.lock").read_text()
    before, _, rest = written.partition('name = "six"\n')
    version, _, after = rest.partition("\n")
    from_place = after.partition("\n")[2]
    (place / "uv.lock").write_text(f'{before}name = "six"\n{version}\nsource = {source}\n{from_place}')
    with pytest.raises(EnvironmentRefused, match=r"uv\.lock"):
        environments.lock(Recipe(place))


def test_a_lock_that_does_not_know_a_dependency_is_refused(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    place = lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)
    (place / "pyproject.toml").write_text(PROJECT.replace('"six"', '"six", "Typing_Extensions"'))
    with pytest.raises(EnvironmentRefused, match=r"'typing-extensions'.*run `uv lock`"):
        environments.lock(Recipe(place))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "says nothing of its environment"),
        ({"uv_lock": "version = 1"}, "no pyproject.toml"),
        ({"pyproject_toml": "[project"}, "not valid TOML"),
        ({"pyproject_toml": "a = " + "[" * 20_000}, "not valid TOML"),
        ({"pyproject_toml": PROJECT, "uv_lock": "not a lock"}, r"uv\.lock"),
        ({"pyproject_toml": PROJECT + '[tool.uv.sources]\nsix = { git = "https://example.com/six" }\n'}, "sources"),
        ({"pyproject_toml": PROJECT.replace(">=3.11", ">=3.99")}, r"Python >=3\.99 is installed"),
        ({"pyproject_toml": PROJECT.replace(">=3.11", "a snake")}, "requires-python|a snake"),
    ],
)
def test_what_cannot_be_an_environment_is_refused(
    environments: Environments, tmp_path: Path, files: dict[str, str], why: str
) -> None:
    with pytest.raises(EnvironmentRefused, match=why):
        environments.lock(Recipe(checkout(tmp_path, **files)))


def test_a_link_in_place_of_a_file_is_not_read(environments: Environments, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("six")
    place = checkout(tmp_path)
    (place / "requirements.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(EnvironmentRefused, match="not a plain file"):
        environments.lock(Recipe(place))


def test_a_python_that_the_project_does_not_allow_is_refused(environments: Environments, tmp_path: Path) -> None:
    place = checkout(tmp_path, pyproject_toml=PROJECT.replace(">=3.11", "<3.10"))
    with pytest.raises(EnvironmentRefused, match=r"requires Python <3\.10"):
        environments.lock(Recipe(place, python=sys.executable))


def test_the_repositorys_own_uv_configuration_has_no_say(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    configured = (
        f'[[tool.uv.index]]\nname = "evil"\nurl = "{nowhere}"\ndefault = true\n[tool.uv]\nrequired-version = "<0.1"\n'
    )
    place = lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)
    (place / "pyproject.toml").write_text(PROJECT + configured)
    (place / "uv.toml").write_text(f'index-url = "{nowhere}"\n')
    assert packages(environments.build(environments.lock(Recipe(place)))) == {"six", "iniconfig"}
    (place / "uv.lock").unlink()
    assert "six==" in environments.lock(Recipe(place)).text


def test_the_operators_index_is_the_only_one(tmp_path: Path, cache: Path) -> None:
    environments = Environments(tmp_path / "environments", find_uv(), tmp_path / "empty-cache")
    place = lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)
    locked = environments.lock(Recipe(place, index_url="http://operator:secret@127.0.0.1:9/simple"))
    with pytest.raises(EnvironmentFailed) as failed:
        environments.build(locked)
    assert failed.value.transient, failed.value.message
    assert "127.0.0.1:9" in failed.value.message
    assert "secret" not in failed.value.message + repr(locked)


def test_a_version_that_does_not_exist_is_not_tried_again(environments: Environments, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match=r"six.*999") as failed:
        environments.lock(Recipe(checkout(tmp_path, requirements_txt="six==999")))
    assert not failed.value.transient


def test_a_wrong_hash_is_not_installed(environments: Environments, tmp_path: Path) -> None:
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    forged = type(locked)(f"{SIX} --hash=sha256:{'0' * 64}\n", "f" * 32, locked.python)
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash"):
        environments.build(forged)
    assert finished(tmp_path / "environments") == set()


def test_the_lock_of_a_bundle_gives_the_same_environment_again(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    """A bundle's requirements.txt is `locked.text`, whatever that came from; markers and all."""
    elsewhere = PROJECT.replace('"six"', '"six", "colorama; sys_platform == \'win32\'"')
    (tmp_path / "bundle").mkdir()
    for files in ({"pyproject_toml": elsewhere}, {"requirements_txt": "iniconfig\nsix<2\n"}):
        place = checkout(tmp_path, **files)
        locked = environments.lock(Recipe(lock(place, cache) if "pyproject_toml" in files else place))
        bundle = checkout(tmp_path / "bundle", requirements_txt=locked.text)
        other_machine = Environments(tmp_path / f"other {len(files)}", find_uv(), cache)
        again = other_machine.lock(Recipe(bundle))
        assert (again.text, again.digest) == (locked.text, locked.digest)
        shutil.rmtree(place)
    assert packages(other_machine.build(again)) == {"six", "iniconfig"}


def test_the_hashes_of_a_list_are_those_that_are_installed(environments: Environments, tmp_path: Path) -> None:
    text = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX))).text
    one = text[: text.index(" \\\n", text.index("--hash"))]
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=one)))
    assert locked.text == f"{one}\n"
    forged = f"{SIX} --hash=sha256:{'0' * 64}\n"
    with pytest.raises(EnvironmentFailed, match=r"(?i)hash mismatch"):
        environments.build(environments.lock(Recipe(checkout(tmp_path, requirements_txt=forged))))


def test_a_list_with_hashes_has_all_of_them(environments: Environments, tmp_path: Path) -> None:
    text = environments.lock(Recipe(checkout(tmp_path, requirements_txt="python-dateutil==2.9.0.post0"))).text
    alone = text[: text.index("six==")]
    with pytest.raises(EnvironmentRefused, match="has hashes, but not six"):
        environments.lock(Recipe(checkout(tmp_path, requirements_txt=alone)))
    for line in ("iniconfig", "iniconfig>=2 --hash=sha256:" + "0" * 64, "iniconfig==2.0.0"):
        with pytest.raises(EnvironmentRefused, match=r"'iniconfig.*no version or no hash"):
            environments.lock(Recipe(checkout(tmp_path, requirements_txt=f"{text}{line}\n")))


def test_the_operators_constraints_hold_for_what_is_resolved_and_for_what_is_locked(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    free = checkout(tmp_path, requirements_txt="six\n")
    assert "six==1.16.0" in environments.lock(Recipe(free, constraints="six<1.17\n")).text
    assert "six==1.16.0" not in environments.lock(Recipe(free)).text
    pinned = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX))).text
    for place in (checkout(tmp_path, requirements_txt=pinned), lock(checkout(tmp_path, pyproject_toml=PROJECT), cache)):
        assert "six==1.17" in environments.lock(Recipe(place, constraints="six>1.10\n")).text
        with pytest.raises(EnvironmentFailed, match=r"(?s)six==1\.17\.0.*six<1\.17.*unsatisfiable") as failed:
            environments.lock(Recipe(place, constraints="six<1.17\n"))
        assert not failed.value.transient


def test_a_conflict_is_explained_in_uvs_own_words(environments: Environments, tmp_path: Path) -> None:
    place = checkout(tmp_path, requirements_txt="python-dateutil==2.9.0.post0\nsix<1.5\n")
    with pytest.raises(
        EnvironmentFailed, match=r"(?s)python-dateutil==2\.9\.0\.post0 depends on.*six>=1\.5.*unsatisfiable"
    ) as failed:
        environments.lock(Recipe(place))
    assert not failed.value.transient


def test_eight_builders_at_once_make_one_build(environments: Environments, tmp_path: Path, cache: Path) -> None:
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    notes: list[str] = []
    places: list[Path] = []

    def build() -> None:
        own = Environments(tmp_path / "environments", find_uv(), cache)
        places.append(own.build(locked, on_progress=notes.append))

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(places) == 8
    assert len(set(places)) == 1
    assert notes.count("installing packages") == 1


def test_a_builder_killed_at_any_moment_leaves_nothing_that_looks_finished(
    environments: Environments, tmp_path: Path, cache: Path
) -> None:
    root = tmp_path / "environments"
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    environments.build(locked)  # so that the cache is warm and the moments below are spread over the build itself
    (root / locked.digest).rename(root / ".aside")
    script = f"""
import sys
from pathlib import Path
from headrace.environment import Environments, Locked
locked = Locked({locked.text!r}, {locked.digest!r}, {locked.python!r})
print(Environments(Path({str(root)!r}), {str(find_uv())!r}, Path({str(cache)!r})).build(locked, on_progress=lambda note: print(note, flush=True)))
"""
    for moment in (0.05, 0.1, 0.15, 0.2, 0.3):
        builder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        eventually(lambda: bool(list(root.glob(f".draft-{locked.digest}-*"))) or finished(root) != set())
        time.sleep(moment)  # not a wait for something: the instant of the kill is what is varied
        builder.send_signal(signal.SIGKILL)
        builder.communicate()
        for name in finished(root):
            assert packages(root / name) == {"six"}
            (root / name).rename(root / f".aside-{moment}")
    environment = environments.build(locked)
    assert packages(environment) == {"six"}
    assert not list(root.glob(f".draft-{locked.digest}-*")), "what killed builders left is removed"


def test_what_progress_raises_stops_the_build_and_leaves_nothing(environments: Environments, tmp_path: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(note: str) -> None:
        if note == "compiling byte code":
            raise Cancelled

    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    with pytest.raises(Cancelled):
        environments.build(locked, on_progress=cancel)
    assert {path.name for path in (tmp_path / "environments").iterdir()} == {"locks"}
    assert packages(environments.build(locked)) == {"six"}


def test_changing_a_file_of_one_environment_changes_no_other(environments: Environments, tmp_path: Path) -> None:
    place = checkout(tmp_path, requirements_txt=SIX)
    first = environments.build(environments.lock(Recipe(place)))
    module = next(first.rglob("six.py"))
    assert module.stat().st_nlink == 1
    original = module.read_bytes()
    module.chmod(0o600)
    module.write_bytes(original + b"\nPOISONED = True\n")
    (place / "requirements.txt").write_text(f"{SIX}\niniconfig\n")
    second = environments.build(environments.lock(Recipe(place)))
    assert second != first
    assert next(second.rglob("six.py")).read_bytes() == original


@pytest.mark.parametrize("act", ["append", "add"])
def test_an_environment_that_was_written_into_is_found_out_and_built_anew(
    environments: Environments, tmp_path: Path, act: str
) -> None:
    """By code that runs as our own user, whom the modes of files do not hold back."""
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    environment = environments.build(locked)
    environments.check(environment)
    module = next(environment.rglob("six.py"))
    original, status = module.read_bytes(), module.stat()
    if act == "append":
        module.chmod(0o600)
        module.write_bytes(original[:-8] + b"evil = 1")
        module.chmod(0o444)
        os.utime(module, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        module.parent.chmod(0o700)
        (module.parent / "evil.pth").write_text("import evil\n")
        module.parent.chmod(0o555)
    with pytest.raises(EnvironmentFailed, match="built anew") as failed:
        environments.check(environment)
    assert failed.value.transient
    assert not environments.is_finished(environment)
    again = environments.build(locked)
    assert again == environment
    assert next(again.rglob("six.py")).read_bytes() == original
    assert not list(again.rglob("evil.pth"))
    environments.check(again)


def test_an_environment_whose_python_is_gone_is_built_anew(environments: Environments, tmp_path: Path) -> None:
    locked = environments.lock(Recipe(checkout(tmp_path, requirements_txt=SIX)))
    environment = environments.build(locked)
    (environment / "bin").chmod(0o700)
    (environment / "bin/python").unlink()
    (environment / "bin/python").symlink_to("/no/python")
    assert packages(environments.build(locked)) == {"six"}


@pytest.mark.parametrize(
    ("specifier", "allowed"),
    [
        (">=3.11", True),
        (">=3.11,<3.12", True),
        (">=3.11.8", False),
        (">3.11", True),
        (">3.11.7", False),
        ("<3.11", False),
        ("<=3.11.7", True),
        ("<=3.11", False),
        ("~=3.11", True),
        ("~=3.11.2", True),
        ("~=3.10.2", False),
        ("==3.11.*", True),
        ("==3.11.7", True),
        ("==3.11", False),
        ("!=3.11.*", False),
        ("!=3.11.6, >=3", True),
        (">=3.12,<4", False),
        ("", True),
    ],
)
def test_requires_python_means_what_it_means_to_packaging(specifier: str, allowed: bool) -> None:
    from packaging.specifiers import SpecifierSet

    assert satisfies((3, 11, 7), specifier) is SpecifierSet(specifier).contains("3.11.7") is allowed
