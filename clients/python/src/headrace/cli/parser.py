"""What can be said: the commands, their words and examples. Imports nothing that a command needs to run."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any, Callable

from headrace import __version__

_EXAMPLES = """\
examples:
  headrace status                                what is there, and what it does now
  headrace why flight-delays                     why it is training, or what it waits for
  headrace logs -f 17                            watch a run
  headrace models                                beside a models.toml: what you run, and what is best
  headrace bump && headrace pull                 take the champions
  headrace rollback flight-delays --reason "…"   go back to the version before

The stack is found by HEADRACE_URL and HEADRACE_TOKEN, by HEADRACE_STATE, or by a .headrace directory here or above.
Every command answers in JSON with --json. Exit code: 0 done, 1 it went wrong (and how), 2 wrong usage.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="headrace",
        description="Models that retrain themselves when new data lands: look, steer, take the best version.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"headrace {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _looking(commands)
    _runs(commands)
    _versions(commands)
    _consuming(commands)
    _authoring(commands)
    return top


def _looking(commands: Any) -> None:
    _command(commands, "status", "status", "models, datasets, workers, and what waits", "headrace status --json")
    why = _command(commands, "why", "status", "why a model trains or waits, in sentences", "headrace why flight-delays")
    why.add_argument("model", metavar="MODEL")
    done = _command(commands, "history", "history", "who did what, when and why", "headrace history flight-delays")
    done.add_argument("model", nargs="?", metavar="MODEL")
    done.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (20)")
    send = _command(
        commands,
        "send",
        "send",
        "report that a dataset has grown",
        "headrace send clicks --from 1000 --to 2000 --rows 1000 --id batch-7\n  headrace send flights      (has a source: look now)\n"
        "  headrace send clicks --rows 1000 --stream",
    )
    send.add_argument("dataset", metavar="DATASET")
    send.add_argument("--from", dest="start", metavar="POINT", help="the range begins after this")
    send.add_argument("--to", dest="end", metavar="POINT", help="the range ends with this")
    send.add_argument("--rows", type=_count, metavar="N", help="how many rows came (not given: enough)")
    send.add_argument("--id", metavar="ID", help="the same ID twice is one arrival")
    send.add_argument(
        "--stream",
        nargs="?",
        const="",
        metavar="URL",
        help="by the Redis stream (of URL, of HEADRACE_REDIS_URL or of the stack on this machine)",
    )


def _runs(commands: Any) -> None:
    runs = _command(commands, "runs", "runs", "the latest runs", "headrace runs flight-delays --state failed")
    runs.add_argument("model", nargs="?", metavar="MODEL")
    runs.add_argument("--state", metavar="STATE", help="waiting, running, retrying, trained, failed or cancelled")
    runs.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (20)")
    run = _command(commands, "run", "runs", "one run: its release, cut, attempts and times", "headrace run 17")
    logs = _command(commands, "logs", "logs", "the log of a run", "headrace logs -f 17\n  headrace logs 17 --attempt 1")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("--attempt", type=_count, metavar="N", help="an earlier attempt (default: the latest)")
    retrain = _command(
        commands,
        "retrain",
        "runs",
        "train a model now, or all that something has changed for",
        'headrace retrain flight-delays --reason "new gate"\n  headrace retrain --dataset flights   every model that trains on it, to its end\n'
        "  headrace retrain flight-delays --sample 1%   a version to build against, in no time, that never serves",
    )
    which = retrain.add_mutually_exclusive_group(required=True)
    which.add_argument("model", nargs="?", metavar="MODEL")
    which.add_argument("--all", action="store_true", help="every model, and follow them")
    which.add_argument("--dataset", metavar="NAME", help="every model that trains on this dataset, and follow them")
    retrain.add_argument("--no-wait", action="store_true", help="with --all and --dataset: do not follow them")
    retrain.add_argument(
        "--sample",
        type=_sample,
        metavar="N%",
        help="on so much of the newest rows only (or a number of them): a version to build against, never promoted",
    )
    retrain.add_argument("--again", action="store_true", help="also if nothing has changed since the last training")
    cancel = _command(commands, "cancel", "runs", "stop a run", 'headrace cancel 17 --reason "wrong table"')
    retry = _command(commands, "retry", "runs", "try a failed or cancelled run again", "headrace retry 17")
    resume = _command(
        commands,
        "resume",
        "models",
        "let a model train again that pauses after failures",
        'headrace resume flight-delays --reason "the disk is larger"',
    )
    resume.add_argument("model", metavar="MODEL")
    for one in (run, logs, cancel, retry):
        one.add_argument("run", type=_count, metavar="RUN", help="its number")
    for one in (retrain, cancel, resume):
        one.add_argument("--reason", metavar="WHY", help="kept with the run")


def _versions(commands: Any) -> None:
    _command(commands, "models", "models", "the models, and what each does now", "headrace models").add_argument(
        "--lock", default="models.toml", metavar="FILE", help="compare with this file (models.toml)"
    )
    versions = _command(
        commands, "versions", "versions", "a model's versions with verdicts", "headrace versions flight-delays"
    )
    versions.add_argument("--limit", type=_count, default=20, metavar="N", help="how many (20)")
    version = _command(
        commands, "version", "versions", "all about one version", "headrace version flight-delays champion"
    )
    promote = _command(
        commands,
        "promote",
        "versions",
        "make an awaiting version the champion",
        'headrace promote flight-delays 14 --reason "seen"',
    )
    rollback = _command(
        commands,
        "rollback",
        "versions",
        "go back to an earlier champion",
        'headrace rollback flight-delays --to 12 --reason "slow"',
    )
    pin = _command(
        commands,
        "pin",
        "versions",
        "rely on a version: it is never tidied away",
        'headrace pin flight-delays 14 --reason "storefront runs it"',
    )
    unpin = _command(commands, "unpin", "versions", "rely on it no more", "headrace unpin flight-delays 14")
    for one in (versions, version, promote, rollback, pin, unpin):
        one.add_argument("model", metavar="MODEL")
    for one in (pin, unpin):
        one.add_argument("version", type=_count, metavar="N")
    version.add_argument("version", type=_version, metavar="N", help='a number, or "champion"')
    promote.add_argument("version", type=_count, metavar="N")
    rollback.add_argument("--to", type=_count, metavar="N", help="which one (default: the champion before)")
    for one in (promote, rollback, pin):
        one.add_argument("--reason", required=True, metavar="WHY", help="kept in the history, with your name")


def _consuming(commands: Any) -> None:
    pull = _command(
        commands,
        "pull",
        "pull",
        "fetch what models.toml names, checked by digest",
        "headrace pull                            all of models.toml\n  headrace pull flight-delays --version 14 --into /srv/models",
    )
    pull.add_argument("model", nargs="?", metavar="MODEL")
    pull.add_argument("--version", type=_version, metavar="N", help="instead of what models.toml says")
    pull.add_argument("--into", default="models", metavar="DIR", help="DIR/MODEL/VERSION is made (models)")
    bump = _command(
        commands,
        "bump",
        "pull",
        "write a newer version into models.toml",
        "headrace bump\n  headrace bump flight-delays 12",
    )
    bump.add_argument("model", nargs="?", metavar="MODEL", help="default: every one that is not on its champion")
    bump.add_argument("version", nargs="?", type=_count, metavar="N", help="default: the champion")
    for one in (pull, bump):
        one.add_argument("--lock", default="models.toml", metavar="FILE", help="the file (models.toml)")


def _authoring(commands: Any) -> None:
    init = _command(
        commands,
        "init",
        "starting",
        "make a new model repository that trains at once",
        "headrace init heat && headrace try heat",
        function="run",
    )
    init.add_argument("path", nargs="?", default=".", metavar="PATH", help="a new or empty directory (.)")
    init.add_argument(
        "--command", action="store_true", dest="command_line", help="trained by scripts, not by functions: any language"
    )
    init.add_argument("--name", metavar="MODEL", help="the model's name (that of the directory)")
    trying = _command(
        commands,
        "try",
        "trying",
        "train a repository here as the platform would, with no platform",
        "headrace try                                           the repository here, rows from sample/NAME.csv\n"
        "  headrace try ../heat --data readings=readings.csv\n  headrace try --data flights=flights.db:flights --sample 20000",
        function="run",
    )
    trying.add_argument("path", nargs="?", default=".", metavar="PATH", help="the repository (.)")
    trying.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=WHERE",
        help="rows of a dataset: file.csv, file.db:TABLE[:CURSOR], sqlite:///file.db:TABLE, or FROM..TO if only reported",
    )
    trying.add_argument("--sample", type=_count, metavar="N", help="the newest N rows of each dataset only")
    trying.add_argument("--upto", metavar="VALUE", help="the cut: rows up to this value of the cursor only")
    trying.add_argument(
        "--holdout", type=_percent, default=10.0, metavar="N%", help="the newest share, to judge on (10%%)"
    )
    trying.add_argument(
        "--python",
        metavar="PYTHON",
        help="run in the environment of this Python, and build none: quicker, but proves less",
    )
    trying.add_argument("--index-url", metavar="URL", help="where packages come from (HEADRACE_INDEX_URL, or PyPI)")


def _command(
    commands: Any, name: str, module: str, told: str, examples: str, function: str | None = None
) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(
        name,
        help=told,
        description=told[0].upper() + told[1:] + ".",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("--json", action="store_true", help="answer in JSON")
    one.set_defaults(command=_later(module, function or name))
    return one


def _later(module: str, name: str) -> Callable[[argparse.Namespace], int | None]:
    def run(arguments: argparse.Namespace) -> int | None:
        done: int | None = getattr(import_module(f"headrace.cli.{module}"), name)(arguments)
        return done

    return run


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number like 17")
    return int(text)


def _percent(text: str) -> float:
    number = text[:-1] if text.endswith("%") else text
    if not number.replace(".", "", 1).isdecimal() or not 0 < float(number) <= 50:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 10%, at most 50%")
    return float(number)


def _sample(text: str) -> str:
    share = text.endswith("%") and text[:-1].replace(".", "", 1).isdecimal() and 0 < float(text[:-1]) <= 50
    if not (text.isascii() and (share or (text.isdigit() and int(text) > 0))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 1%, at most 50%, nor a number of rows")
    return text


def _version(text: str) -> object:
    return text if text == "champion" else _count(text)
