"""The end of the demo: what happened with the time of each step, and whether all of it was seen."""

from __future__ import annotations

from rich.table import Table

from stack.demo.show import Show
from stack.demo.story import TO_SEE, Scene, Story, moment


def report(story: Story, show: Show) -> bool:
    """Print both tables; True when all was seen."""
    show.chapter("What happened, and how long each step took")
    show.console.print(_steps(story))
    callers = story.callers
    show.line(
        f"{callers.answered:,} predictions answered while {len(callers.first_answers)} versions took turns; {len(callers.failures)} failed"
    )
    show.console.print()
    for key, words in TO_SEE.items():
        show.console.print(f"  {'[green]✓[/]' if story.seen[key] else '[red]✗ not seen:[/]'} {words}", highlight=False)
    return all(story.seen.values())


def _steps(story: Story) -> Table:
    table = Table(
        caption="seconds; the champion is scored beside the training, so the columns do not add up",
        caption_style="dim",
        pad_edge=False,
    )
    for name, options in {
        "run": {}, "because of": {"no_wrap": True}, "rows": {"justify": "right", "no_wrap": True}, "waited": {"justify": "right"}, "prepare": {"justify": "right"},
        "train": {"justify": "right"}, "champion": {"justify": "right"}, "bundle": {"justify": "right"}, "judged": {"justify": "right"},
        "swapped": {"justify": "right"}, "in all": {"justify": "right", "style": "bold"}, "verdict": {"no_wrap": True},
    }.items():  # fmt: skip
        table.add_column(name, **options)  # type: ignore[arg-type]
    for scene in story.scenes:
        table.add_row(*_row(scene))
    return table


def _row(scene: Scene) -> list[str]:
    run, version = scene.run, scene.version
    seconds = run["attempts"][-1]["seconds"] or {}
    judged = moment(version["verdict"]["at"])
    served = scene.served_at
    rows = (run["cut"].get("flights") or {}).get("rows")
    return [
        str(run["id"]),
        scene.cause,
        f"{rows:,}" if rows else "",
        f"{moment(run['started_at']) - scene.at:.2f}",
        *(f"{seconds[name]:.2f}" if name in seconds else "" for name in ("prepare", "train", "champion", "bundle")),
        f"{judged - moment(run['finished_at']):.2f}",
        f"{served - judged:.2f}" if served else "",
        f"{(served or judged) - scene.at:.2f}",
        f"{version['state']} as {version['version']}",
    ]
