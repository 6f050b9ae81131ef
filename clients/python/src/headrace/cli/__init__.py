"""The command line: arguments in, one or more requests, a table or JSON out.

It never shows a traceback for what a person can put right, and imports what a command needs only when it runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, List, Optional

if TYPE_CHECKING:
    from argparse import Namespace

    from headrace.connection import Problem


def main(argv: Optional[List[str]] = None) -> int:
    """The exit code: 0, or the command's own; 1 when something went wrong, 2 for wrong usage (raised by argparse), 130 after Ctrl-C."""
    from headrace.cli.parser import parser

    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`): leave quietly, also when the interpreter flushes at exit.
        sys.stdout = None
        return 0


def _run(arguments: Namespace) -> int:
    from headrace.connection import Problem

    try:
        code: int = arguments.command(arguments) or 0
        sys.stdout.flush()
    except Problem as problem:
        _complain(problem, arguments.json)
        return 1
    return code


def _complain(problem: Problem, as_json: bool) -> None:
    if as_json:
        import json

        told = {"error": problem.message, "advice": problem.advice, "errors": problem.errors, "status": problem.status}
        print(json.dumps(told), file=sys.stderr)
        return
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}headrace: {problem.message}{plain}", *problem.errors, sep="\n  ", file=sys.stderr)
    if problem.advice:
        print(problem.advice, file=sys.stderr)
