"""`headrace try`: what the platform would make of a repository, shown before a release of it exists."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, Optional

from headrace.cli import show
from headrace.cli.logs import Lines
from headrace.connection import Problem

GATE_FAILS = 3


def run(arguments: Namespace) -> int:
    """The exit code: 0 trained, 1 not, 3 trained but a gate fails."""
    if sys.version_info < (3, 11):
        raise Problem("headrace try needs Python 3.11 or newer", "the repository's own code may run on an older one")
    if not Path(arguments.path).is_dir():
        raise Problem(f"there is no directory {arguments.path}", "give the path of a repository")
    from headrace import trial
    from headrace.outcome import RunFailed
    from headrace.trial_data import Wanted

    out = sys.stderr if arguments.json else sys.stdout
    lines = Lines(live=out.isatty())

    def write(text: str) -> None:
        out.write(lines.feed(text))
        out.flush()

    wanted = Wanted(arguments.sample, arguments.upto, arguments.holdout)
    asked = trial.Asked(
        Path(arguments.path).resolve(), arguments.data, wanted, arguments.index_url, _python(arguments.python)
    )
    try:
        report = trial.attempt(asked, lambda text: write(f"[headrace] {text}\n"), write)
    except RunFailed as error:
        write(lines.end())
        return _failed(error, arguments.json)
    write(lines.end())
    if arguments.json:
        show.as_json(_told(report))
    else:
        _show(report)
    return 0 if report.passes else GATE_FAILS


def _python(told: Optional[str]) -> Optional[Path]:
    """Not resolved: a link's own place is what makes it the Python of an environment."""
    found = shutil.which(told) if told is not None else None
    if told is not None and found is None:
        raise Problem(f"there is no program {told}", "give the path of a Python, such as .venv/bin/python")
    return Path(found).absolute() if found is not None else None


def _failed(error: Any, as_json: bool) -> int:
    if as_json:
        told = {"kind": error.kind, "message": error.message, "advice": error.advice, "transient": error.transient}
        print(json.dumps({"error": told}, indent=2, ensure_ascii=False))
        return 1
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    again = "would try it again" if error.transient else "would not try it again"
    print(f"{red}headrace: {error.kind}: {error.message}{plain}", file=sys.stderr)
    print(f"{error.advice}\n(the platform {again})", file=sys.stderr)
    return 1


def _told(report: Any) -> Dict[str, Any]:
    gates = [{"metric": each.metric, "holds": each.holds, "rule": each.sentence} for each in report.gates]
    told = {key: getattr(report, key) for key in ("metrics", "seconds", "saved", "signature", "files")}
    return {**told, "gates": gates, "remarks": list(report.remarks), "passes": report.passes}


def _show(report: Any) -> None:
    if report.metrics:
        show.heading("Metrics")
        show.table(("metric", "value"), sorted(report.metrics.items()), empty="")
    if report.gates:
        show.heading("Gates, without a champion")
        words = {True: "holds", False: "fails", None: "later"}
        show.table(
            ("metric", "gate", "rule"),
            [(each.metric, words[each.holds], each.sentence) for each in report.gates],
            empty="",
        )
    show.heading("Seconds")
    show.table(("phase", "seconds"), [(name, f"{took:.2f}") for name, took in report.seconds.items()], empty="")
    show.heading("Bundle")
    show.table(("file", "size"), _files(report.files), empty="")
    print(_saved(report))
    for remark in report.remarks:
        print(f"note: {remark}")
    print(_verdict(report))


def _files(files: Dict[str, int]) -> List[show.Row]:
    """Each file; those of the source together."""
    rows: List[show.Row] = [(name, show.size(size)) for name, size in files.items() if not name.startswith("source/")]
    source = [size for name, size in files.items() if name.startswith("source/")]
    return [*rows, (f"source/ ({len(source)} files)", show.size(sum(source)))]


def _saved(report: Any) -> str:
    saved = f"\nsaved as {report.saved.get('format')} (model/{report.saved.get('file') or ''}), loaded back"
    columns = [
        f"{each.get('name') or each.get('dtype')} {each.get('type')}" for each in report.signature.get("inputs", [])
    ]
    return f"{saved}; predict takes {', '.join(columns)}" if columns else f"{saved}; what predict takes is not known"


def _verdict(report: Any) -> str:
    if report.passes:
        return "It trains. Commit it, tag it (git tag v1.0.0) and push."
    if report.metrics is None:
        return "It trains, but nothing was evaluated: the platform's verdict would be undecided."
    return "It trains, but a gate fails: the platform would reject this version."
