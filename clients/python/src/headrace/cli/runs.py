"""`headrace runs`, `run`, `retrain`, `cancel`, `retry`: trainings, and what can be done about them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Dict, Mapping, Optional, Sequence

from headrace.cli import show
from headrace.connection import api_path, connect


def runs(arguments: Namespace) -> None:
    query = {"model": arguments.model, "state": arguments.state}
    found = connect().items(api_path("runs"), query, limit=arguments.limit)
    if arguments.json:
        return show.as_json(found)
    rows = [_row(each) for each in found]
    show.table(("run", "model", "state", "release", "version", "when", "what"), rows, empty="No such run.")


def run(arguments: Namespace) -> None:
    _show(connect().get(api_path("runs", arguments.run)), arguments.json)


def retrain(arguments: Namespace) -> Optional[int]:
    if arguments.model is None:
        from headrace.cli import campaign

        return campaign.retrain(arguments)
    body: Dict[str, Any] = {"model": arguments.model, **_reason(arguments.reason)}
    if arguments.again:  # an older platform does not know the word
        body["again"] = True
    if arguments.sample:
        body["sample"] = arguments.sample
    found = connect().post(api_path("runs"), body)
    lines = [f"run {found['id']} of {found['model']}: {found['sentence']}", f"watch it: headrace logs -f {found['id']}"]
    if found.get("sample"):
        then = f"headrace run {found['id']} names its version, headrace pull {found['model']} --version N fetches it"
        lines.append(f"on {show.sample(found['sample'])}, never promoted: {then}")
    _done(found, "\n".join(lines), arguments.json)
    return None


def cancel(arguments: Namespace) -> None:
    found = connect().post(api_path("runs", arguments.run, "cancel"), _reason(arguments.reason))
    _done(found, f"run {arguments.run} is being cancelled", arguments.json)


def retry(arguments: Namespace) -> None:
    found = connect().post(api_path("runs", arguments.run, "retry"), {})
    _done(found, f"run {found['id']} of {found['model']}: {found['sentence']}", arguments.json)


def _row(told: Mapping[str, Any]) -> show.Row:
    when = told["finished_at"] or told["started_at"] or told["due_at"]
    error, trained = told["error"], told["state"] == "trained"
    what = f"{error['kind']}: {_first_line(error)}" if error else told["reason"] if trained else told["sentence"]
    if told["state"] == "running" and (newest := told.get("metrics")):
        what += f"; {show.pairs(dict(list(newest.items())[:3]))}"
    if told.get("sample"):
        what = f"on {show.sample(told['sample'])}; {what}"
    if told.get("left_s") is not None:
        what += f"; about {show.span(told['left_s'])} left"
    return (
        told["id"],
        told["model"],
        told["state"],
        (told["release"] or {}).get("name"),
        told["version"],
        show.ago(when),
        what,
    )


def _show(told: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        return show.as_json(told)
    release, error, progress = told["release"] or {}, told["error"] or {}, told["progress"]
    show.facts(
        [
            ("run", f"{told['id']} of {told['model']}"),
            ("state", told["state"]),
            ("why", told["sentence"]),
            ("trains on", told.get("sample") and f"{show.sample(told['sample'])}; its version never serves"),
            ("release", " ".join(filter(None, (release.get("name"), release.get("commit"))))),
            ("class", told["compute_class"]),
            ("data", _cut(told["cut"])),
            ("planned", show.ago(told["planned_at"])),
            ("due", show.ago(told["due_at"]) if told["state"] in ("waiting", "retrying") else None),
            ("progress", progress and f"{progress['fraction']:.0%} {progress['note']}"),
            ("left", f"about {show.span(told['left_s'])}" if told.get("left_s") is not None else None),
            ("checkpoint", _checkpoint(told.get("checkpoint"))),
            ("error", error and f"{error['kind']}: {_first_line(error)}"),
            ("advice", error.get("advice")),
            ("version", told["version"]),
            ("bundle", f"tidied away {show.ago(told['tidied_at'])}" if told.get("tidied_at") else told["bundle"]),
        ]
    )
    if "\n" in error.get("message", ""):
        show.heading("What it said")
        print(error["message"])
    if told["attempts"] and (metrics := told["attempts"][-1].get("metrics")):
        show.heading("Metrics")
        rows = [_metric(name, points) for name, points in metrics.items()]
        show.table(("metric", "step", "value", "lowest", "highest"), rows, empty="")
    if told["attempts"]:
        show.heading("Attempts")
        show.table(
            ("attempt", "worker", "began", "outcome", "used", "seconds"),
            [_attempt(each) for each in told["attempts"]],
            empty="",
        )


def _metric(name: str, points: Sequence[Mapping[str, Any]]) -> show.Row:
    values = [point["value"] for point in points]
    return name, points[-1]["step"], values[-1], min(values), max(values)


def _checkpoint(told: Optional[Mapping[str, Any]]) -> Optional[str]:
    if not told:
        return None
    return f"of attempt {told['attempt']}, {show.size(told['size_bytes'])}, {show.ago(told['at'])}"


def _first_line(error: Mapping[str, Any]) -> str:
    return str(error["message"]).partition("\n")[0]


def _attempt(told: Mapping[str, Any]) -> show.Row:
    return (
        told["number"],
        told["worker"],
        show.ago(told["started_at"]),
        told["outcome"] or "running",
        show.used(told.get("used")),
        show.pairs(told["seconds"]),
    )


def _cut(cut: Optional[Mapping[str, Any]]) -> Optional[str]:
    """`flights up to 27004`; a shape that this client does not know is shown as it is."""
    if not cut:
        return None
    points = {name: each.get("upto", each) if isinstance(each, dict) else each for name, each in cut.items()}
    return ", ".join(f"{name} up to {point}" for name, point in points.items())


def _reason(reason: Optional[str]) -> Mapping[str, str]:
    return {"reason": reason} if reason else {}


def _done(told: Mapping[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        return show.as_json(told)
    print(sentence)
