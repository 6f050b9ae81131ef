"""headrace.toml: what is taken, and what each wrong file is told."""

from __future__ import annotations

import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from shared import catalog, declaration
from shared.catalog import Catalog, Rest, Sql, Stream, check_declaration, digest, load, parse, variables
from shared.declaration import Declaration, Use
from shared.errors import ConfigurationError, Refused
from shared.explain import check, closest
from shared.reference import reference
from shared.subscriptions import check_secret
from shared.toml import MAX_BYTES, read_toml
from shared.values import format_duration, format_share, format_size, parse_duration, parse_share, parse_size

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"

SOURCE = 'source = { kind = "sql", url = "env:FLIGHTS_URL", table = "flights", cursor = "id" }'
DATASET = f"[datasets.flights]\n{SOURCE}\n"
MODEL = '[models.m]\nrepository = "https://git.example.com/m.git"\n'
HOOK = '[[subscriptions]]\nurl = "https://shop.example.com/h"\nsecret = "env:S"\n'


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(text.encode() if isinstance(text, str) else text)
    return str(caught.value)


def dataset(key: str) -> str:
    return f'[datasets.flights.source]\nkind = "sql"\nurl = "env:U"\ntable = "t"\ncursor = "id"\n{key}\n'


# what is written; the line that is blamed; what the answer says
WRONG: list[tuple[str, int, str]] = [
    ("[dataset.flights]", 1, 'dataset: unknown key; did you mean "datasets"?'),
    ("[datasets.Flights]\n" + SOURCE, 1, "'Flights' is not a name"),
    (f'[datasets."../../etc/passwd"]\n{SOURCE}', 1, "is not a name"),
    (f'[datasets."Ａ"]\n{SOURCE}', 1, "is not a name"),
    ("[datasets.flights]", 1, "datasets.flights.source: is missing"),
    ("keep = 3", 1, "keep: expected table, found the number 3"),
    ('[keep]\nrun = "1d"', 2, 'keep.run: unknown key; did you mean "runs"?'),
    ('[keep]\nlogs = "0s"', 2, 'keep.logs: must be from "1s" to "3650d"; for example logs = "30d"'),
    ("[keep]\nrejected = -1", 2, "keep.rejected: must be at least 0"),
    ('[keep]\nenvironments = "20 GB"', 2, 'a size is text, a whole number with one unit of B, kB, MB, GB or TB; for example environments = "20GB"'),
    ("[keep]\nenvironments = 20", 2, "keep.environments: a size is text"),
    ('[keep]\nenvironments = "1001TB"', 2, 'more than "1000TB"'),
    ('retention = { runs = "1d" }', 1, "retention: unknown key; write keep = {"),
    ("[datasets.flights]\nsource = 3", 2, "expected table, found the number 3"),
    ('[datasets.flights]\nsource = { url = "x" }', 2, "kind is missing"),
    ('[datasets.flights]\nsource = { kind = "s3" }', 2, 'there is no kind "s3" by now, only "sql", "rest" and "stream"'),
    ('[datasets.flights]\nsource = { kind = "sql", url = "env:U", cursor = "id" }', 2, 'table: is missing (table or column name); for example table = "flights"'),
    (dataset('pol = "1s"'), 6, 'pol: unknown key; did you mean "poll"?'),
    (dataset("poll = 1"), 6, 'a duration is text, a whole number with one unit of ms, s, m, h or d; for example poll = "1s"'),
    (dataset('poll = "1 second"'), 6, "a duration is text"),
    (dataset('poll = "1ms"'), 6, 'must be from "100ms" to "1d"'),
    (dataset('lag = "9999999d"'), 6, 'longer than "3650d"'),
    (dataset('time_column = "a.b"'), 6, "no dot"),
    (dataset("time_column = 1979-05-27"), 6, "expected table or column name, found a date"),
    (f'{DATASET}holdout = {{ newest = "60%" }}', 3, "at most 50%"),
    (f"{DATASET}holdout = {{ newest = 0.1 }}", 3, 'a share is text, a number with a percent sign; for example newest = "10%"'),
    (f"{DATASET}holdout = {{ max_rows = 50 }}", 3, "above max_rows = 50"),
    (f'{DATASET}holdout = {{ max_rows = "50" }}', 3, "expected whole number, found text"),
    (f"{DATASET}holdout = {{ max_rows = true }}", 3, "expected whole number, found true"),
    (MODEL + 'release = "latests"', 3, 'a release is "latest"'),
    (MODEL + 'release = "branch:-x"', 3, "not taken"),
    (MODEL + 'release = "tag:$(id)"', 3, "not taken"),
    (MODEL + 'release = "tag:v1.lock"', 3, "not taken"),
    (MODEL + 'credentials = "glpat-1"', 3, 'name where they are: "env:NAME" or "file:/PATH"'),
    (MODEL + 'credentials = "file:token"', 3, "never stand in this file"),
    (MODEL + "network = true", 3, "network: goes with sandbox only"),
    (MODEL + 'readable = ["/srv/images"]', 3, "readable: goes with sandbox only"),
    (MODEL + 'sandbox = "docker"', 3, 'sandbox: "docker" is not known here; known: bubblewrap'),
    (MODEL + 'sandbox = "bubblewrap"\nreadable = ["images"]', 4, "'images' is not a whole path of this machine"),
    (MODEL + 'sandbox = "bubblewrap"\nreadable = ["/srv/../root"]', 4, "is not a whole path of this machine"),
    (MODEL + 'sandbox = "bubblewrap"\nreadable = ["/"]', 4, "is not a whole path of this machine"),
    ('[models.m]\nrepository = "/srv/m.git"\ncredentials = "env:T"', 3, "a repository on this machine asks for none"),
    (MODEL + 'subdirectory = "../m"', 3, "not taken"),
    (MODEL + 'tags = "churn"', 3, "needs one * where the version stands"),
    (MODEL + 'tags = "*-*"', 3, "needs one *"),
    (MODEL + 'tags = "$(id)*"', 3, "not taken"),
    (MODEL + 'release = "branch:main"\ntags = "churn-*"', 4, 'goes with release = "latest" only'),
    (MODEL + 'promote = "automatically"', 3, 'did you mean "automatic"?'),
    (MODEL + "attempts = 1_000_000_000", 3, "must be at most 10"),
    (MODEL + "attempts = 1e9", 3, "expected whole number, found the number 1000000000.0"),
    (MODEL + 'pass_env = ["OK",\n "LD_PRELOAD"]', 3, "pass_env[1]: LD_PRELOAD steers"),
    (MODEL + 'pass_env = ["PYTHONSTARTUP"]', 3, "never passed on"),
    (MODEL + 'pass_env = ["PATH"]', 3, "never passed on"),
    (MODEL + 'pass_env = ["HEADRACE_TOKEN"]', 3, "never passed on"),
    (MODEL + 'pass_env = ["HIP_VISIBLE_DEVICES"]', 3, "GPUs that it was given: drop it here, and say gpus = N"),
    (MODEL + 'pass_env = ["A=B"]', 3, "is not the name of an environment variable"),
    (MODEL + 'pass_env = "A"', 3, 'expected list of variable names, found text; for example pass_env = ["FLIGHTS_URL"]'),
    (MODEL + 'env = { A = "b" }', 3, "pass_env"),
    (MODEL + 'policy = { min_row = 5 }', 3, 'did you mean "min_rows"?'),
    (MODEL + "policy = { min_rows = -1 }", 3, "must be at least 0"),
    (MODEL + "gates = { auc = { } }", 3, "the gate sets no limit"),
    (MODEL + "gates = { auc = { min = nan } }", 3, "must be a finite number"),
    (MODEL + "gates = { auc = { min = 0.9, max = 0.1 } }", 3, "nothing can pass"),
    (MODEL + "gates = { rmse = { lower_is_better = true, max_drop = 1 } }", 3, "use max_rise"),
    ('[models.m]\nrepository = "--upload-pack=touch x"', 2, "not taken"),
    ('[models.m]\nrepository = "ext::sh -c id"', 2, "not taken"),
    ('[models.m]\nrepository = "ssh://-oProxyCommand=id/x"', 2, "not taken"),
    ('[models.m]\nrepository = "http://git.example.com/m.git"', 2, "not taken"),
    ('[models.m]\nrepository = "https:///m.git"', 2, "not taken"),
    ('[models.m]\nrepository = "../m"', 2, "not taken"),
    ('[[subscriptions]]\nurl = "https://h.example.com/"', 1, "subscriptions[0].secret: is missing"),
    (HOOK + "[[subscriptions]]\nurl = 5\nsecret = \"env:S\"", 5, "subscriptions[1].url: expected URL, found the number 5"),
    (HOOK + 'types = ["version.promted"]', 4, 'did you mean "version.promoted"?'),
    (HOOK + "types = []", 4, "must not be empty"),
    (HOOK + 'models = ["m2"]\n' + MODEL, 4, 'there is no model "m2"'),
    (MODEL + HOOK + 'models = ["m"]\ntypes = ["arrival.observed"]', 7, 'models = ["*"]'),
    (HOOK + 'name = "a"\n' + HOOK + 'name = "a"', 8, "names an earlier subscription already"),
    (HOOK.replace("https", "http"), 2, "allow_private = true"),
    (HOOK.replace("shop.example.com", "169.254.169.254"), 2, "allow_private = true"),
    (HOOK.replace("shop.example.com", "224.0.0.1"), 2, "allow_private = true"),
    (HOOK.replace("shop.example.com", "[::1]"), 2, "allow_private = true"),
    (HOOK.replace("shop.example.com", "2130706433"), 2, "allow_private = true"),
    (HOOK.replace("shop.example.com", "user@shop.example.com"), 2, "no user"),
    (HOOK.replace("https:", "ftp:"), 2, "https: URL"),
    (HOOK.replace("/h", "/h\\u0000"), 2, "NUL"),
    ("[compute_classes.gpu]\nslots = -1", 2, "must be at least 0"),
    ("[stack]\napi_port = 65_536", 2, "must be at most 65535"),
    ("[stack]\napi_port = 80\nredis_port = 80", 3, "80 is api_port already"),
    ("subscriptions = 3", 1, "expected list of tables, found the number 3"),
    ("models = [1]", 1, "expected table, found a list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_file_is_refused_with_its_line_and_what_would_be_right(text: str, line: int, said: str) -> None:
    answer = refused(text)
    assert answer.startswith(f"headrace.toml:{line}: "), answer
    assert said in answer
    assert len(answer.splitlines()) == 1, "one mistake, one line"


NO_TOML: list[tuple[bytes, int | None, str]] = [
    (b"x = " + b"[" * 20_000, 1, "nested deeper than 32"),
    (b"\n\nx = [\n" + b"[\n" * 20_000, 35, "nested deeper than 32"),
    (b"\nx = " + b"{a=" * 5_000, 2, "nested deeper than 32"),
    (b"\n[" + b".".join([b"a"] * 5_000) + b"]", 2, "nested deeper than 32"),
    (b"\n" + b".".join([b"a"] * 5_000) + b" = 1", 2, "nested deeper than 32"),
    (b"\xef\xbb\xbf[models.m]", 1, "byte-order mark"),
    ("[models.m]".encode("utf-16"), 1, "byte-order mark"),
    (b"# ok\n# \xff", 2, "not UTF-8"),
    (b"#" * (MAX_BYTES + 1), None, "larger than 1024 KiB"),
    (b"[models.m]\n[stack]\n[models.m]\n", 3, "the table [models.m] stands twice"),
    (b"[stack]\napi_port = 1\napi_port = 2\n", 3, "stands twice in its table"),
    (b"x = { a = 1, a = 2 }", 1, "stands twice in its table"),
    (b"[stack]\napi_port = yes", 2, "not a TOML value"),
    (b"[stack\n", 1, "not TOML"),
    (b"x = " + b"9" * 5_000, 1, "too many digits"),
    (b"x = 0x" + b"f" * 400, 1, "too many digits"),
    (b'x = """never closed', 1, "not TOML"),
]


@pytest.mark.parametrize(("raw", "line", "said"), NO_TOML, ids=range(len(NO_TOML)))
def test_what_is_not_toml_is_refused_with_its_line(raw: bytes, line: int | None, said: str) -> None:
    answer = refused(raw)
    assert said in answer
    assert answer.startswith(f"headrace.toml:{line}: " if line else "headrace.toml: "), answer


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    answer = refused(dataset("pol = 1") + MODEL + 'attempts = 0\npromote = "no"\n[stack]\nport = 1')
    assert [line.split(": ")[0] for line in answer.splitlines()] == [f"headrace.toml:{n}" for n in (6, 9, 10, 12)]


@pytest.mark.parametrize(
    "text",
    [
        dataset("").replace("env:U", "postgresql://u:hunter2secret@db/x"),
        dataset("").replace("env:U", "postgresql://db/x?password=hunter2secret"),
        HOOK.replace("env:S", "whsec_hunter2secret"),
        HOOK.replace("shop.example.com", "u:hunter2secret@shop.example.com"),
        MODEL.replace("https://", "https://u:hunter2secret@"),
        dataset('password = "hunter2secret"'),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text.encode())
    assert "hunter2secret" not in str(caught.value)
    assert caught.value.__cause__ is None, "a chained error would bring the values into the log"


def test_a_whole_file_is_read_with_its_defaults() -> None:
    found = catalog.example()
    flights, model = found.datasets["flights"], found.models["flight-delays"]
    assert isinstance(flights.source, Sql)
    assert flights.source.url_variable == "FLIGHTS_URL"
    assert (flights.source.poll, flights.source.lag) == (timedelta(seconds=1), timedelta(0))
    assert flights.holdout.newest == Decimal("0.1")
    assert model.policy.max_wait == timedelta(hours=6)
    assert (model.attempts, model.time_limit) == (3, timedelta(hours=24))
    assert found.subscriptions[0].name == "storefront.example.com"
    assert variables(found) == {"FLIGHTS_URL", "STOREFRONT_HOOK_SECRET"}


def test_an_empty_file_is_a_catalog_with_the_standard_class() -> None:
    found = parse(b"# nothing yet\n")
    assert (found.datasets, found.models, found.subscriptions) == ({}, {}, ())
    assert found.compute_classes["standard"].slots == 1


def test_a_reported_dataset_needs_no_more_than_its_kind() -> None:
    read = parse(b'[datasets.d]\nsource = { kind = "rest" }\n[datasets.e]\nsource = { kind = "stream" }').datasets
    assert (read["d"].source, read["e"].source) == (Rest(), Stream())
    assert (read["d"].reported, read["e"].reported) == (True, True)


@pytest.mark.parametrize(
    "url", ["https://git.example.com/m.git", "ssh://git@git.example.com/m.git", "git@git.example.com:ml/m.git", "file:///srv/m", "/srv/m"]
)  # fmt: skip
def test_the_operators_file_may_name_a_repository_anywhere(url: str) -> None:
    assert parse(f'[models.m]\nrepository = "{url}"'.encode()).models["m"].repository == url


def test_subscriptions_to_one_host_get_names_of_their_own() -> None:
    found = parse((HOOK + HOOK + HOOK + 'name = "shop.example.com-2"').encode())
    assert [one.name for one in found.subscriptions] == ["shop.example.com", "shop.example.com-3", "shop.example.com-2"]


def test_what_is_stored_reads_back_the_same() -> None:
    found = catalog.example()
    assert Catalog.from_json(found.to_json()) == found
    assert digest(Catalog.from_json(found.to_json())) == digest(found)


def test_what_a_new_file_may_no_longer_say_is_read_on_where_it_is_in_force() -> None:
    in_force = parse(f'{MODEL}pass_env = ["CUDA_DEVICES"]'.encode()).to_json().replace("CUDA_", "CUDA_VISIBLE_")
    assert Catalog.from_json(in_force).models["m"].pass_env == ("CUDA_VISIBLE_DEVICES",)


def test_the_digest_follows_the_meaning_and_not_the_spelling() -> None:
    one = parse((DATASET + "# a comment\n" + MODEL + 'time_limit = "1d"').encode())
    other = parse((MODEL + 'time_limit = "24h"\n' + DATASET).encode())
    changed = parse((MODEL + 'time_limit = "23h"\n' + DATASET).encode())
    assert digest(one) == digest(other) != digest(changed)
    second = MODEL.replace("models.m", "models.n")
    assert digest(parse((MODEL + second).encode())) == digest(parse((second + MODEL).encode()))


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "headrace.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path)


def test_a_file_of_10_mb_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_bytes(b"a" * 10_000_000)
    with pytest.raises(ConfigurationError, match="larger than 1024 KiB"):
        load(tmp_path / "headrace.toml")


def test_the_error_carries_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_text("\n\n[stack]\nport = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert (caught.value.file, caught.value.line) == (str(path), 4)


LOCATED = b"""\
# a comment with [brackets] and = signs
a = 1
'quoted key' = '''
[not a table]
b = 2
'''
list = [
  1,  # one
  { x = 1 },
]
dotted.key.deep = true

[table."with dot.in"]
key = "a # no comment"

[[array]]
name = "first"
[array.inner]
key = 1
[[array]]
name = "second"
  [array.inner]
  key = { nested = [ 1, { last = 2 } ] }
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("a",), 2),
        (("quoted key",), 3),
        (("b",), None),
        (("list", 1, "x"), 7),
        (("dotted", "key", "deep"), 11),
        (("table", "with dot.in", "key"), 14),
        (("table", "with dot.in", "missing"), 13),
        (("array", 0, "name"), 17),
        (("array", 0, "inner", "key"), 19),
        (("array", 1, "name"), 21),
        (("array", 1, "inner", "key", "nested", 1, "last"), 23),
        (("array", 1, "nothing"), 20),
    ],
)
def test_a_key_is_found_at_its_line(path: tuple[str | int, ...], line: int | None) -> None:
    assert read_toml(LOCATED, "x.toml").line(path) == line
    assert read_toml(LOCATED.replace(b"\n", b"\r\n"), "x.toml").line(path) == line


def test_a_key_is_found_behind_a_very_long_list() -> None:
    raw = b"x = [\n" + b"[1],\n" * 50_000 + b"]\n[y]\nz = 1\n"
    assert read_toml(raw, "x.toml").line(("y", "z")) == 50_004


def test_finding_lines_takes_no_quadratic_time() -> None:
    def cost(lines: int) -> float:
        raw = b"x = [\n" + b"[1]\n,\n" * lines + b"]\n[y]\nz = 1\n"
        started = time.process_time()
        read_toml(raw, "x.toml")
        return time.process_time() - started

    assert cost(48_000) < 10 * cost(12_000), "four times the lines, and sixteen times the work if it were quadratic"


@pytest.mark.parametrize("text", ["0s", "1ms", "1500ms", "90s", "10m", "6h", "365d"])
def test_durations_are_written_as_they_are_read(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


@pytest.mark.parametrize("text", ["0B", "1B", "1500kB", "20GB", "1000TB"])
def test_sizes_are_written_as_they_are_read(text: str) -> None:
    assert format_size(parse_size(text)) == text


def test_what_is_kept_has_safe_defaults_and_reads_back_from_the_ledger() -> None:
    assert (
        parse(b"").keep == parse(b'keep = { runs = "180d", rejected = 20, logs = "30d", environments = "20GB" }').keep
    )
    other = parse(b'keep = { runs = "1s", rejected = 0, logs = "1s", environments = "1MB" }')
    assert Catalog.from_json(other.to_json()) == other
    assert (other.keep.environments, digest(other) == digest(parse(b""))) == (1_000_000, False)


@pytest.mark.parametrize("text", ["10%", "0.5%", "33.3%", "50%"])
def test_shares_are_written_as_they_are_read(text: str) -> None:
    assert format_share(parse_share(text)) == text


def declared(**changes: object) -> Declaration:
    base = {"train": "m:train", "datasets": {"flights": Use()}}
    return Declaration.model_validate(base | changes)


CONFLICTS: list[tuple[dict[str, object], str]] = [
    ({"compute_class": "compute-optimised"}, 'no class "compute-optimised"; did you mean "compute-optimized"?'),
    ({"datasets": {"flight": Use()}}, 'no dataset "flight"; did you mean "flights"?'),
    ({"datasets": {"flights": Use(history=timedelta(days=365))}}, "the dataset has no time_column"),
    ({"datasets": {"reported": Use(rows=5)}}, "its data is only reported"),
    ({"datasets": {"streamed": Use(history=timedelta(days=1))}}, "its data is only reported"),
    ({}, 'evaluate: the operator sets gates, and limits on auc need metrics; add evaluate = "module:function"'),
]


@pytest.mark.parametrize(("changes", "said"), CONFLICTS, ids=range(len(CONFLICTS)))
def test_a_release_that_asks_for_what_is_not_there_is_told_what_is(changes: dict[str, object], said: str) -> None:
    operator = parse(
        (
            DATASET
            + '[datasets.reported]\nsource = { kind = "rest" }\n[datasets.streamed]\nsource = { kind = "stream" }\n'
            + MODEL
            + "gates = { auc = { min = 0.5 } }\n"
            "[compute_classes.compute-optimized]\n"
        ).encode()
    )
    with pytest.raises(Refused) as caught:
        check_declaration(declared(**changes), operator, "m")
    assert said in str(caught.value)


def test_a_release_that_fits_is_taken() -> None:
    check_declaration(declaration.example(), catalog.example(), "flight-delays")


@pytest.mark.parametrize(
    "value", ["", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!" * 20]
)
def test_a_weak_or_broken_secret_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_secret("HOOK", value)
    assert "HOOK" in str(caught.value)
    assert not value or value not in str(caught.value) or value == "whsec_"


def test_a_webhook_secret_is_taken() -> None:
    assert check_secret("HOOK", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_nothing_near_is_answered_with_all_there_is() -> None:
    assert closest("zzz", ["rows", "history"]) == "; known: rows, history"


def test_every_key_is_documented() -> None:
    assert "| None" not in reference(), "a field without a description"


def test_the_reference_page_is_the_rendered_one() -> None:
    command = "python -c \"from shared.reference import reference; print(reference(), end='')\" > docs/reference/configuration.md"
    assert REFERENCE.read_text() == reference(), f"the definitions have changed; render the page again: {command}"


def test_an_advice_stands_for_a_key_that_people_expect() -> None:
    document = read_toml(b'[tool.headrace]\nentry = "train.py"\n', "pyproject.toml")
    found, problems = check(
        declaration.Tool, {"entry": "x"}, document, at=("tool", "headrace"), advice={"entry": "write train"}
    )
    assert found is None
    assert "tool.headrace.entry: unknown key; write train" in [problem.unplaced for problem in problems]
