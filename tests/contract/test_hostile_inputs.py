"""Forty things that somebody may send, write into a file, or leave behind, and what comes of each: one table.

A row either tries its input here, on the real API, parsers and ledger, or names the test that does (`shown_by`), where it takes a server, a
child or a repository of its own.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from headrace.requirements import check_plain

from services.registry_bridge import egress
from services.trainer import bundle, metrics
from services.trainer.checkout import Prepared
from services.trainer.failures import AttemptFailed
from shared import catalog, declaration, repository
from shared.errors import ConfigurationError, HeadraceError, Refused
from shared.ledger import arrivals, runs
from shared.manifest import File, Manifest, read_tree
from tests.apis import Api, serve
from tests.ledgers import adopt

ROOT = Path(__file__).parents[2]
EVENTS, JSON = "/v1/events", "application/json"


@dataclass(frozen=True)
class Place:
    """Where a row tries its input: the API, and a directory of its own, in which no canary may ever appear."""

    api: Api
    path: Path

    def post(self, body: bytes | dict[str, object], *statuses: int, kind: str = JSON) -> None:
        """Refused as a problem, and nothing is stored."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = self.api.request("POST", EVENTS, content=content, headers={"Content-Type": kind})
        assert answer.status_code in statuses, answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        with self.api.ledger.read() as tx:
            assert arrivals.find_all(tx, dataset=None, before=None, limit=1) == []

    def get(self, path: str, *statuses: int) -> None:
        answer = self.api.get(path)
        assert (answer.status_code in statuses, answer.headers["Content-Type"]) == (True, "application/problem+json")


Try = Callable[[Place], None]


@dataclass(frozen=True)
class Row:
    sentence: str
    tries: Try | None = None
    shown_by: tuple[str, ...] = ()


ROWS: dict[int, Row] = {}


def row(number: int, sentence: str, *shown_by: str) -> Callable[[Try], Try]:
    def add(tries: Try) -> Try:
        ROWS[number] = Row(sentence, tries, shown_by)
        return tries

    return add


def shown(number: int, sentence: str, *shown_by: str) -> None:
    ROWS[number] = Row(sentence, None, shown_by)


def refuses(act: Callable[[str], object], inputs: Iterable[str], *kinds: type[Exception]) -> None:
    for text in inputs:
        with pytest.raises(kinds or (HeadraceError,)):
            act(text)


# What comes over REST.


@row(
    1,
    "a body of 5 MiB is refused before it is parsed",
    "tests/integration/test_api_parallel.py::test_a_length_that_lies_is_refused_and_the_connection_closed",
)
def _(place: Place) -> None:
    place.post(b" " * 5 * 1024**2, 413)


@row(2, "a hundred thousand levels are refused, in little time")
def _(place: Place) -> None:
    took = []
    for _ in range(3):
        began = time.process_time()
        place.post(b"[" * 100_000, 400)
        took.append(time.process_time() - began)
    assert min(took) < 0.1


@row(3, "a number of five thousand digits is refused")
def _(place: Place) -> None:
    place.post(b'{"dataset":"reported","rows":' + b"9" * 5000 + b"}", 400)


@row(4, "what JSON does not know as a number is refused")
def _(place: Place) -> None:
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999"):
        place.post(b'{"dataset":"reported","rows":' + number + b"}", 400)


@row(5, "a key that stands twice is refused")
def _(place: Place) -> None:
    place.post(b'{"dataset":"reported","dataset":"flights"}', 400)


@row(6, "what is not declared as JSON is refused")
def _(place: Place) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        place.post(b'{"dataset":"reported"}', 415, kind=kind)


shown(
    7,
    "a negative length, and a sender that trickles, are given up",
    "tests/unit/test_api_hostile.py::test_a_body_of_a_negative_length_is_refused",
    "tests/unit/test_api_hostile.py::test_a_body_that_does_not_come_is_not_waited_for",
    "tests/contract/test_slow_senders.py::test_a_sender_that_trickles_is_closed_in_time",
)
NAMES = ("../../etc/passwd", "a/b", "a%2e%2e", "a\0b", "Ａ", "a" * 10_000, "-x", ".", "..", "", "a\n", "reported ")


@row(8, "a name that could be a path, a queue, a ref or an option is refused wherever a name comes in")
def _(place: Place) -> None:
    for name in NAMES:
        place.post({"dataset": name}, 422, 400)
        assert place.api.post("/v1/runs", {"model": name}).status_code in (422, 400)
        quoted = json.dumps(name)
        for table in ("datasets", "models", "compute_classes"):
            refuses(lambda text: catalog.parse(text.encode()), [f"[{table}.{quoted}]\n"], ConfigurationError)
        named = f'[[subscriptions]]\nname = {quoted}\nurl = "https://h.example.com"\nsecret = "env:A"\n'
        refuses(lambda text: catalog.parse(text.encode()), [named], ConfigurationError)
        declared = f'[project]\nname = "m"\nversion = "1"\n[tool.headrace]\ntrain = "m:t"\ncompute_class = {quoted}\n'
        refuses(lambda text: declaration.parse(text.encode()), [declared], Refused)


shown(
    9,
    "fifty at once under one key are one event",
    "tests/integration/test_api_parallel.py::test_fifty_with_one_key_are_one_arrival_and_get_one_answer",
)
shown(
    10,
    "another report under the same key is refused",
    "tests/unit/test_api_event_modes.py::test_the_same_key_with_another_report_is_refused_and_the_first_is_kept",
)


@row(11, "an event names no place: where the data is, is the operator's word alone")
def _(place: Place) -> None:
    for uri in ("file:///etc/shadow", "http://169.254.169.254/", "s3://other-bucket/x", "s3://ok/../x"):
        for key in ("url", "uri", "data_uri", "path", "table"):
            place.post({"dataset": "reported", key: uri}, 422)


@row(12, "a field that nobody knows is refused, above all one that would steer us")
def _(place: Place) -> None:
    for key in ("command", "env", "queue", "repository", "release", "model", "priority"):
        place.post({"dataset": "reported", key: "x"}, 422)
    answer = place.api.post("/v1/runs", {"model": "delays", "queue": "train.gpu"})
    assert answer.status_code == 422


@row(13, "a time that is none, or of no zone, or far away, is refused")
def _(place: Place) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "dataset.arrived", "subject": "reported"}
    for moment in ("9999-01-01T00:00:00Z", "-001-01-01T00:00:00Z", "2026-11-23T18:00:00", "now"):
        place.post(event | {"time": moment}, 422, kind="application/cloudevents+json")


shown(
    14,
    "a flood for one model is one run that waits and one that runs, and 429 above the rate",
    "tests/contract/test_hostile_inputs.py::test_a_flood_of_reports_is_one_run",
    "tests/unit/test_rates.py::test_a_token_above_its_rate_gets_429_with_the_time_to_wait_and_others_go_on",
)


@row(
    15,
    "a limit or a cursor that is none is refused",
    "tests/unit/test_api_hostile.py::test_a_cursor_of_another_list_is_refused",
)
def _(place: Place) -> None:
    for query in (
        "limit=-1",
        "limit=0",
        "limit=1000000000",
        "limit=many",
        "after=garbage",
        "after=%00%ff",
        "after=" + "A" * 5000,
    ):
        place.get(f"/v1/runs?{query}", 422)


@row(
    16,
    "a token can do what its scope says, and without one all unknown things look the same",
    "tests/unit/test_api_access.py::test_acting_needs_the_scope_operate_and_the_refused_body_is_not_read",
)
def _(place: Place) -> None:
    assert place.api.post("/v1/models/delays/promote", {}, token="submit").status_code == 403
    told = {
        place.api.get(path, token=None).text
        for path in ("/v1/runs/1", "/v1/runs/999", "/v1/models/delays", "/v1/models/none")
    }
    assert len(told) == 1


@row(17, "a place in the list of notices that is none is refused")
def _(place: Place) -> None:
    for after in ("-1", "99999999999999999999", "'; DROP TABLE notice", "NaN"):
        place.get(f"/v1/notices?after={after}", 422)


shown(
    18,
    "three hundred that connect and reset leave it serving",
    "tests/contract/test_slow_senders.py::test_three_hundred_that_connect_and_reset_leave_it_serving",
)


# What stands in files.


@row(19, "a TOML file of twenty thousand levels is told with its line")
def _(place: Place) -> None:
    with pytest.raises(ConfigurationError) as told:
        catalog.parse(b"a = " + b"[" * 20_000, "headrace.toml")
    assert (told.value.file, told.value.line) == ("headrace.toml", 1)
    refuses(lambda text: declaration.parse(text.encode()), ["a = " + "[" * 20_000], Refused)


@row(
    20,
    "a file that is wrong in any way puts nothing in force",
    "tests/unit/test_catalog.py::test_a_file_of_10_mb_is_refused_without_reading_it_all",
)
def _(place: Place) -> None:
    wrong = (
        "unknown = 1",
        "[models.a]\n[models.a]",
        "models = 7",
        "[models.a]\nrepository = 1",
        "[keep]\nruns = -1",
        "\ufeff[models]x",
    )
    refuses(lambda text: catalog.parse(text.encode()), wrong, ConfigurationError)


HEAD = '[project]\nname = "m"\nversion = "1"\n[tool.headrace]\n'


def declare(text: str) -> object:
    return declaration.parse(text.encode())


@row(21, "there is no command that a repository could have us run")
def _(place: Place) -> None:
    canary = place.path / "canary"
    refuses(declare, [f'{HEAD}train = "m:t"\ncommand = "python train.py; touch {canary}"'], Refused)


@row(
    22,
    "an entry point is a module of the checkout and no path",
    "tests/contract/test_git.py::test_a_hostile_tree_is_refused_and_leaves_nothing",
)
def _(place: Place) -> None:
    entries = ("../../outside.py", "/etc/passwd:x", "a/b:c", "a.b", "a:b:c", "a:b()", ".a:b", "os;x:y")
    refuses(declare, [f"{HEAD}train = {json.dumps(entry)}" for entry in entries], Refused)


@row(23, "variables that steer the loader or the interpreter are never passed on, and a repository passes none")
def _(place: Place) -> None:
    model = '[models.m]\nrepository = "https://h.example.com/m.git"\npass_env = [{}]'
    names = ("LD_PRELOAD", "PYTHONSTARTUP", "PATH", "HOME", "HEADRACE_LEDGER_URL", "A=B", "A B", "BASH_ENV", "")
    refuses(
        lambda text: catalog.parse(text.encode()),
        [model.format(json.dumps(name)) for name in names],
        ConfigurationError,
    )
    refuses(
        declare,
        [f'{HEAD}train = "m:t"\nenv = {{ LD_PRELOAD = "x" }}', f'{HEAD}train = "m:t"\npass_env = ["A"]'],
        Refused,
    )


@row(
    24,
    "a limit that is none is refused; a repository can only tighten its time",
    "tests/system/test_outages.py::test_a_training_that_takes_too_long_is_stopped_with_all_that_it_started",
)
def _(place: Place) -> None:
    model = '[models.m]\nrepository = "https://h.example.com/m.git"\n'
    wrong = (
        'time_limit = "9999999d"',
        "attempts = 1000000000",
        "limits.memory = -1",
        'limits.memory = "1B"',
        "limits.processes = 0",
    )
    wrong += ('limits.disk = "5000TB"', "limits.open_files = 1e9", 'limits.log = "0B"')
    refuses(lambda text: catalog.parse(text.encode()), [model + line for line in wrong], ConfigurationError)
    refuses(declare, [f'{HEAD}train = "m:t"\ntime_limit = "9999999d"', f'{HEAD}train = "m:t"\nlimits = {{}}'], Refused)


def urls(number: int, sentence: str, *inputs: str) -> None:
    @row(number, sentence, "tests/contract/test_git.py::test_a_hostile_url_is_refused_before_git_sees_it")
    def _(place: Place) -> None:
        refuses(repository.check_url, (text.replace("$CANARY", str(place.path / "canary")) for text in inputs), Refused)


urls(25, "a repository's URL is no option of git's", "--upload-pack=touch $CANARY", "-u", "--", "-oProxyCommand=x")
urls(
    26,
    "a repository's URL runs no helper",
    "ext::sh -c touch% $CANARY",
    "EXT::sh",
    "fd::3",
    "ftp://h/x",
    "transport::address",
)
urls(
    27,
    "a repository's URL carries neither options for ssh nor credentials",
    "ssh://-oProxyCommand=touch$CANARY/x",
    "https://user:pass@host/x",
    "a:b@host:x",
)
urls(28, "a repository on this machine takes the operator's word", "file:///etc", "/srv/repo", "file://host/x", "C:\\x")
urls(
    29,
    "a repository's URL means one host",
    "https:///example.com/x",
    "http://h/x",
    "git://h/x",
    "https://h/x\nhost=evil",
    "https://h/%0ahost",
    "https://h\\@e/x",
)


@row(30, "a ref is a plain name", "tests/contract/test_git.py::test_a_hostile_name_of_a_branch_or_tag_is_refused")
def _(place: Place) -> None:
    refuses(
        repository.check_ref,
        ("-x", "$(id)", "a..b", "@{u}", "refs/heads/x.lock", "a" * 300, "", "a//b", "a b", "a\nb"),
        Refused,
    )


# What stands in a repository.

shown(
    31,
    "submodules, hooks and filters of a repository run nothing",
    "tests/contract/test_git.py::test_hooks_filters_and_submodule_files_of_a_repository_run_nothing",
)
shown(
    32,
    "links out of it, too many files and too many bytes are refused",
    "tests/contract/test_git.py::test_a_declaration_that_is_a_link_is_refused",
    "tests/contract/test_git.py::test_a_hostile_tree_is_refused_and_leaves_nothing",
    "tests/contract/test_git.py::test_more_bytes_than_the_bound_are_refused_before_one_is_written",
)


@row(
    33,
    "a requirement names no place, and only the operator's index is asked; the repository's own build backend is not run",
    "tests/contract/test_environment.py::test_the_operators_index_is_the_only_one",
    "tests/contract/test_environment.py::test_the_repositorys_own_uv_configuration_has_no_say",
)
def _(place: Place) -> None:
    for line in (
        "x @ https://evil/x.whl",
        "-e .",
        "--index-url http://evil",
        "./x",
        "git+https://evil/x",
        "x --hash=sha256:0",
    ):
        with pytest.raises(Exception, match="plain requirement"):
            check_plain("requirements.txt", [line])


# What a child does, and leaves.

shown(
    34,
    "a fork bomb, 100 GB of memory, a full disk, a deaf child, daemons and kill(-1) end one run and nothing else",
    "tests/contract/test_confined_child.py::test_who_takes_more_than_the_limit_is_stopped_and_told_which",
    "tests/contract/test_confined_child.py::test_a_user_of_its_own_harms_nobody_else",
    "tests/contract/test_warden.py::test_terminate_kills_a_child_that_ignores_it",
    "tests/contract/test_warden.py::test_kill_takes_the_whole_tree",
    "tests/contract/test_warden.py::test_a_tree_that_keeps_forking_is_killed",
)
shown(
    35,
    "a child finds no secret in the worker's environment or memory, in descriptors or in files",
    "tests/contract/test_confined_child.py::test_neither_worker_nor_warden_can_be_looked_into_by_the_child",
    "tests/contract/test_confined_child.py::test_a_child_has_three_descriptors_the_listed_variables_and_no_rights_of_root",
    "tests/contract/test_confined_child.py::test_a_user_of_its_own_reaches_its_scratch_and_nothing_of_the_platforms",
)
PATHS = ("../x", "/abs", "a\\..\\b", "%2e%2e/x", "a/../b", "a/./b", "a//b", "", "a\0b", "a\n", " a", "x" * 500, "Ａ")


@row(
    36,
    "a bundle holds plain files under plain names",
    "tests/unit/test_hostile_author.py::test_what_is_too_large_is_refused_before_it_is_read",
)
def _(place: Place) -> None:
    zero = "0" * 64
    refuses(lambda path: Manifest(files=(File(path=path, sha256=zero, size_bytes=1),)), PATHS, ValueError)
    with pytest.raises(ValueError, match="same path"):
        Manifest(files=tuple(File(path=path, sha256=zero, size_bytes=1) for path in ("A", "a")))
    for number, make in enumerate((_link, os.mkfifo, _socket, _hard_link)):
        output = place.path / str(number)
        output.mkdir()
        make(output / "odd")
        with pytest.raises(AttemptFailed, match="plain files only"):
            bundle.complete(output, Prepared(place.path, Path("python"), ""), b"")


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _hard_link(path: Path) -> None:
    (path.parent.parent / "somebody-elses").touch()
    os.link(path.parent.parent / "somebody-elses", path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most a hundred bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@row(
    37,
    "a file that is not what its digest says is refused, and nothing is ever unpickled",
    "tests/contract/test_blobs.py::test_a_flipped_byte_is_noticed_before_the_last_piece_is_handed_out",
    "tests/contract/test_blobs.py::test_a_tree_with_a_lost_blob_does_not_appear",
    "tests/contract/test_mlflow_registry.py::test_nothing_of_the_authors_is_imported_or_unpickled",
)
def _(place: Place) -> None:
    (place.path / "model.pkl").write_bytes(
        b"cposix\nsystem\n(S'touch " + str(place.path / "canary").encode() + b"'\ntR."
    )
    assert [file.path for file in read_tree(place.path).files] == ["model.pkl"]


@row(38, "what is no finite number under a short name is no metric, and passes no gate")
def _(place: Place) -> None:
    wrong: list[object] = [{"auc": value} for value in (float("nan"), float("inf"), "0.9", None, True, [1], 10**400)]
    wrong += [{str(n): 1.0 for n in range(100_000)}, {"": 1.0}, {"a" * 300: 1.0}, {"a\nb": 1.0}, [], "auc", {1: 1.0}]
    for value in wrong:
        with pytest.raises(Refused, match="invalid_metric"):
            metrics.check(value)
    assert metrics.check({"__class__": 1}) == {"__class__": 1.0}  # a name like any other


# Where we speak to others.

shown(
    39,
    "of what MLflow answers nothing is trusted, and a name that is none goes nowhere",
    "tests/contract/test_mlflow_registry.py::test_a_name_that_is_none_goes_nowhere",
    "tests/contract/test_mlflow_registry.py::test_each_strange_answer_is_told_as_what_it_is",
    "tests/contract/test_mlflow_registry.py::test_a_file_name_that_means_another_place_is_not_uploaded",
)
HOOKS = (
    "http://127.0.0.1",
    "http://2130706433",
    "http://[::ffff:7f00:1]",
    "http://[64:ff9b::7f00:1]",
    "http://[2002:7f00:1::]",
)
HOOKS += (
    "http://224.0.0.1",
    "https://ok@127.0.0.1/",
    "http://127.0.0.1:22",
    "http://127.0.0.1:6379",
    "http://0x7f.1",
    "http://127.1",
)


@row(
    40,
    "a webhook reaches no address that is not public, whatever it is called, and reads a bounded answer",
    "tests/contract/test_webhook.py::test_no_connection_is_made_to_a_private_address",
    "tests/contract/test_webhook.py::test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_judged",
    "tests/contract/test_webhook.py::test_a_redirect_is_a_failure_and_is_not_followed",
    "tests/contract/test_webhook.py::test_a_huge_answer_is_read_no_further_than_its_bound",
)
def _(place: Place) -> None:
    subscription = '[[subscriptions]]\nurl = "https://h.example.com"\nsecret = "env:A"\n'
    for wrong in (
        'networks = ["10.0.0.0/8"]',
        'allow_private = true\nnetworks = ["10.0.0.1/8"]',
        'allow_private = true\nnetworks = ["*"]',
    ):
        refuses(lambda text: catalog.parse(text.encode()), [subscription + wrong], ConfigurationError)
    refuses(lambda url: egress.addresses(egress.parse(url), (), egress.look_up, 5), HOOKS, Refused)


# The table.


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serve(tmp_path_factory.mktemp("api")) as running:
        adopt(running.ledger, dataset="reported")
        yield running


@pytest.mark.parametrize("number", [number for number, found in sorted(ROWS.items()) if found.tries])
def test_a_hostile_input_gets_the_answer_that_its_row_says(api: Api, tmp_path: Path, number: int) -> None:
    tries = ROWS[number].tries
    assert tries is not None
    tries(Place(api, tmp_path))
    assert not list(tmp_path.rglob("canary*"))


def test_the_table_is_whole_and_each_test_that_it_names_is_there() -> None:
    assert sorted(ROWS) == list(range(1, 41))
    for number, found in ROWS.items():
        assert found.tries or found.shown_by, number
        for node in found.shown_by:
            file, _, name = node.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(), f"{number}: there is no {node}"


def test_a_flood_of_reports_is_one_run(tmp_path: Path) -> None:
    with serve(tmp_path) as api:
        adopt(api.ledger, dataset="reported")
        for number in range(60):
            assert api.post(EVENTS, {"dataset": "reported", "rows": 1000, "id": str(number)}).status_code == 202
        with api.ledger.read() as tx:
            assert len(runs.find_all(tx)) == 1
