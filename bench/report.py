"""What was measured, as a table for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measured import STEPS, Measured

Results = Mapping[str, Sequence[Measured]]


def print_table(console: Console, results: Results, loads: tuple[float, float]) -> None:
    """With lines and colour on a terminal, plain columns otherwise."""
    columns = ["seconds, medians", *results]
    body = [[label, *(_number(results[name], step) for name in results)] for step, label in STEPS.items()]
    totals = {name: [one.total_s for one in measured] for name, measured in results.items()}
    body += [
        ["in all", *(f"{median(seconds):.3f}" for seconds in totals.values())],
        ["fastest", *(f"{min(seconds):.3f}" for seconds in totals.values())],
        ["slowest", *(f"{max(seconds):.3f}" for seconds in totals.values())],
    ]
    (_rich if console.is_terminal else _plain)(console, columns, body)
    for line in _remarks(results, totals, loads):
        console.print(line, highlight=False, soft_wrap=True)


def print_json(results: Results, loads: tuple[float, float]) -> None:
    totals = {name: median(one.total_s for one in measured) for name, measured in results.items()}
    told: dict[str, Any] = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load_before_after": loads},
        "repetitions": {
            name: [{"total_s": one.total_s, "steps_s": one.steps, "beside_s": one.beside} for one in measured]
            for name, measured in results.items()
        },
        "median_s": totals,
        "ratios": {f"{first} / {name}": totals[first] / totals[name] for first, name in _pairs(results)},
    }
    print(json.dumps(told, indent=2))


def _number(measured: Sequence[Measured], step: str) -> str:
    found = [one.steps[step] for one in measured if step in one.steps]
    return f"{median(found):.3f}" if found else ""


def _remarks(results: Results, totals: Mapping[str, Sequence[float]], loads: tuple[float, float]) -> list[str]:
    ratios = [f"{first} / {name} {median(totals[first]) / median(totals[name]):.2f}" for first, name in _pairs(results)]
    beside = [one.beside["champion"] for measured in results.values() for one in measured if "champion" in one.beside]
    number = len(next(iter(totals.values())))
    return [
        f"ratios: {' · '.join(ratios)}",
        f"Headrace alone scores the champion (beside the training, {median(beside):.3f} s), judges, and keeps a bundle and log; by hand, saving is a part of logging.",
        f"{number} repetitions in turns after one to warm up; medians of steps do not add up. {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {loads[0]:.2f} before and {loads[1]:.2f} after; the stack idles beside the others.",
    ]


def _pairs(results: Results) -> list[tuple[str, str]]:
    first, *others = results
    return [(first, name) for name in others]


def _rich(console: Console, columns: list[str], body: list[list[str]]) -> None:
    table = Table(pad_edge=False)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    for row in body[:-3]:
        table.add_row(*row)
    table.add_section()
    table.add_row(*body[-3], style="bold")
    for row in body[-2:]:
        table.add_row(*row, style="dim")
    console.print(table)


def _plain(console: Console, columns: list[str], body: list[list[str]]) -> None:
    widths = [max(len(row[index]) for row in [columns, *body]) for index in range(len(columns))]
    for row in [columns, *body]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        console.print("  ".join(cells).rstrip(), highlight=False, markup=False, soft_wrap=True)
