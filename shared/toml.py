"""TOML with line numbers: `tomllib` says where a file does not parse, but not where a key stands that means nothing.

Both files that people write for us come through here (headrace.toml, a release's pyproject.toml), and both may be hostile:
deep nesting ends `tomllib` in a RecursionError, a number of 5,000 digits in a bare ValueError.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1024**2
MAX_DEPTH = 32
_STATEMENT_END = re.compile(r"""[\]}"']\s*$|#""")
_MAX_TRIES = 500


class TomlError(ValueError):
    """The text is not TOML that we take; `line` is 1-based where it is known."""

    def __init__(self, file: str, line: int | None, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.message = message
        self.line = line


@dataclass(frozen=True)
class Document:
    """A parsed file; `lines` holds the line of each key path."""

    file: str
    data: dict[str, object]
    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int | None:
        """Where `path` stands, or else the nearest table around it."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)

    def where(self, path: KeyPath) -> str:
        line = self.line(path)
        return f"{self.file}:{line}" if line else self.file


def read_toml(raw: bytes, file: str) -> Document:
    """Parse `raw`; raises `TomlError` with file and line for all that is not plain TOML of a sane size."""
    text = _decode(raw, file)
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise TomlError(
            file, _deepest_line(text), f"nested deeper than {MAX_DEPTH} levels; nothing here needs that"
        ) from None
    except ValueError as error:
        raise _syntax_error(file, text, str(error)) from None
    lines: dict[KeyPath, int] = {}
    for path, line in _locate(text):
        lines.setdefault(path, line)
    document = Document(file, data, lines)
    _check_values(document)
    return document


def _decode(raw: bytes, file: str) -> str:
    if len(raw) > MAX_BYTES:
        raise TomlError(file, None, f"the file is larger than {MAX_BYTES // 1024} KiB; this is not a configuration")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise TomlError(file, 1, "the file starts with a byte-order mark; save it as UTF-8 without one")
    try:
        return raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise TomlError(file, raw.count(b"\n", 0, error.start) + 1, "not UTF-8; save the file as UTF-8") from None


def _syntax_error(file: str, text: str, message: str) -> TomlError:
    found = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", message, re.DOTALL)
    if found:
        return TomlError(file, int(found[2]), _advise(found[1]) + f" (column {found[3]})")
    if message.endswith("(at end of document)"):
        return TomlError(
            file, text.count("\n") + 1, _advise(message.removesuffix(" (at end of document)")) + " (end of the file)"
        )
    number = next((n for n, line in enumerate(text.split("\n"), 1) if re.search(r"[0-9_]{1000}", line)), None)
    return TomlError(file, number, "a number has too many digits; whole numbers fit in 64 bits")


def _advise(message: str) -> str:
    if message.startswith("Cannot declare"):
        table = ".".join(re.findall(r"'([^']*)'", message))
        return f"the table [{table}] stands twice in the file; keep one and put its keys together"
    if message.startswith(("Cannot overwrite", "Duplicate inline")):
        return "this key stands twice in its table; keep one"
    if message == "Invalid value":
        return 'not a TOML value; text needs quotes ("…"), and true and false are written small'
    return f"not TOML: {message}"


def _deepest_line(text: str) -> int:
    depth = 0
    for number, line in enumerate(text.split("\n"), 1):
        deepest = depth + line.count("[") + line.count("{")
        if deepest > MAX_DEPTH:
            return number
        depth = max(0, deepest - line.count("]") - line.count("}"))
    return 1


def _check_values(document: Document) -> None:
    todo: list[tuple[KeyPath, object]] = [((), document.data)]
    while todo:
        path, value = todo.pop()
        if len(path) > MAX_DEPTH:
            line = document.line(path)
            raise TomlError(document.file, line, f"nested deeper than {MAX_DEPTH} levels; nothing here needs that")
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise TomlError(
                document.file, document.line(path), "a number has too many digits; whole numbers fit in 64 bits"
            )
        if "\x00" in str(path[-1:]) or (isinstance(value, str) and "\x00" in value):
            raise TomlError(
                document.file, document.line(path), "a NUL character, which no database and no program takes"
            )
        if isinstance(value, dict):
            todo += [((*path, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            todo += [((*path, index), item) for index, item in enumerate(value)]


def _locate(text: str) -> Iterator[tuple[KeyPath, int]]:
    """Every key path with its line, for a text that is known to parse: each statement is parsed by itself."""
    table: KeyPath = ()
    entries: dict[KeyPath, int] = {}
    for line, statement in _statements(text):
        parsed = tomllib.loads(statement)
        if not statement.lstrip().startswith("["):
            yield from ((table + path, line) for path in _paths(parsed))
            continue
        table = _resolve(_header(parsed), entries, again=statement.lstrip().startswith("[["))
        yield from ((table[:end], line) for end in range(1, len(table) + 1))


def _statements(text: str) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    tries = 0
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        if len(held) > 1 and not _STATEMENT_END.search(line):
            continue  # inside a list or a text of several lines: saves a parse of all lines held
        if tries > _MAX_TRIES:
            return  # what follows is found at its table at best; nobody waits for a quadratic search
        tries += 1
        if _parses("\n".join(held)):
            yield number - len(held) + 1, "\n".join(held)
            held, tries = [], 0


def _parses(statement: str) -> bool:
    if not statement.strip() or statement.lstrip().startswith("#"):
        return "\n" not in statement
    try:
        return bool(tomllib.loads(statement))
    except (ValueError, RecursionError):
        return False


def _header(parsed: dict[str, object]) -> KeyPath:
    """The one path of a parsed `[a.b]` or `[[a.b]]`, as deep as anything is looked at."""
    path: KeyPath = ()
    node: object = parsed
    while isinstance(node, dict) and node and len(path) <= MAX_DEPTH:
        key, node = next(iter(node.items()))
        path = (*path, key)
    return path


def _resolve(header: KeyPath, entries: dict[KeyPath, int], *, again: bool) -> KeyPath:
    """Put into `header` which entry of an array of tables it means; `again` for `[[…]]`, which opens the next entry."""
    path: KeyPath = ()
    for position, key in enumerate(header, 1):
        path = (*path, key)
        if again and position == len(header):
            entries[path] = entries.get(path, -1) + 1
        if path in entries:
            path = (*path, entries[path])
    return path


def _paths(value: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    if path:
        yield path
    if len(path) > MAX_DEPTH:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))
