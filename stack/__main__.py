"""`python -m stack …`: what needs the database or the whole machine. All else is `headrace`, over REST."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

CONFIG, STATE = Path("headrace.toml"), Path(".headrace")


def main(argv: list[str] | None = None) -> int:
    """Each command is `main(args)` of a module that is imported only for it; it returns the exit code."""
    args = _parser().parse_args(argv)
    if args.on_a_ledger and not _settings_found(args.state):
        print(
            f"no stack has been started on {args.state}: run `make up` there first, or name it with STATE=…",
            file=sys.stderr,
        )
        return int(args.without_ledger)
    module, function = args.run
    return int(getattr(importlib.import_module(module), function)(args) or 0)


def _settings_found(state: Path) -> bool:
    """Whether the environment says which ledger is meant; else it is made to say: the one that `make up` keeps in `state`."""
    if "HEADRACE_SETTINGS" not in os.environ and "HEADRACE_LEDGER_URL" not in os.environ:
        settings = (state / "settings.json").absolute()
        if not settings.exists():
            return False
        os.environ["HEADRACE_SETTINGS"] = str(settings)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stack", description=__doc__)
    parser.set_defaults(on_a_ledger=False, without_ledger=1)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="start the embedded stack and stay until Ctrl-C")
    _add_paths(up)
    up.set_defaults(run=("stack.up", "main"))

    apply = commands.add_parser("apply", help="check headrace.toml and put it in force")
    _add_paths(apply)
    apply.set_defaults(run=("stack.apply", "main"), on_a_ledger=True)

    migrate = commands.add_parser("migrate", help="bring the ledger's tables to what this version needs")
    _add_state(migrate)
    migrate.set_defaults(run=("stack.ledger", "migrate"), on_a_ledger=True)

    restore = commands.add_parser("restore", help="go back to an older copy of the ledger, with the stack stopped")
    restore.add_argument(
        "copy", type=Path, nargs="?", help="the copy of a SQLite ledger; PostgreSQL is put back before"
    )
    restore.add_argument("--reason", default="", help="why, for the history")
    _add_state(restore)
    restore.set_defaults(run=("stack.restore", "main"), on_a_ledger=True)

    tidy = commands.add_parser("tidy", help="take away what `keep` in headrace.toml no longer keeps, now")
    tidy.add_argument("--dry-run", action="store_true", help="only say what would be taken, and why the rest stays")
    _add_state(tidy)
    tidy.set_defaults(run=("stack.tidy", "main"), on_a_ledger=True)

    envs = commands.add_parser("envs", help="the model environments on this machine: size, last use, and who uses them")
    envs.add_argument("--json", action="store_true", help="everything, for a program")
    envs.add_argument("--prune", action="store_true", help="take away all of the trainer's disk that nobody uses now")
    envs.add_argument("--dry-run", action="store_true", help="with --prune: only say what would be taken")
    _add_state(envs)
    envs.set_defaults(run=("stack.envs", "main"), on_a_ledger=True)

    audit = commands.add_parser(
        "audit",
        help="hold ledger, MLflow, blob store and Redis against what is promised; reads only, at any time",
        description="Exit code: 0 all is as it must be; 1 something is not; 2 something could not be looked at.",
    )
    audit.add_argument("--json", action="store_true", help="everything, for a program")
    audit.add_argument("--quiet", action="store_true", help="say nothing when all is as it must be (for cron)")
    audit.add_argument("--deep", action="store_true", help="read every stored file and compare it with its digest")
    audit.add_argument(
        "--pause", type=float, default=3.0, help="seconds before the second look at what seems wrong (default: 3)"
    )
    _add_state(audit)
    audit.set_defaults(run=("stack.audit", "main"), on_a_ledger=True, without_ledger=2)

    prepare = commands.add_parser(
        "prepare", help="what a deployment does before its processes start: migrate, the operator's token, apply"
    )
    _add_paths(prepare)
    prepare.add_argument("--patience", type=float, default=60.0, help="seconds to wait for the database (default: 60)")
    prepare.set_defaults(run=("stack.prepare", "main"), on_a_ledger=True)

    token = commands.add_parser("token", help="tokens of the REST interface").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = token.add_parser(
        "create", help="make a token and print it once; an older one of that name no longer counts"
    )
    create.add_argument("name", help="whose it is, e.g. the name of a service")
    create.add_argument("--scopes", default="read", help="of submit, read and operate, by commas (default: read)")
    _add_state(create)
    create.set_defaults(run=("stack.ledger", "create_token"), on_a_ledger=True)
    revoke = token.add_parser("revoke", help="let a token count no longer")
    revoke.add_argument("name", help="the name that it was made with")
    _add_state(revoke)
    revoke.set_defaults(run=("stack.ledger", "revoke_token"), on_a_ledger=True)

    demo = commands.add_parser("demo", help="show the whole flow on real flights")
    demo.add_argument("--state", type=Path, default=Path(".headrace-demo"), help="where the demo lives")
    demo.set_defaults(run=("stack.demo", "main"))
    return parser


def _add_paths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, help="the operator's file (default: %(default)s)")
    _add_state(parser)


def _add_state(parser: argparse.ArgumentParser) -> None:
    state = Path(os.environ.get("HEADRACE_STATE") or STATE)
    parser.add_argument("--state", type=Path, default=state, help="the directory of the stack (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(main())
