"""A proxy before a server of the Redis protocol that loses rings: what a client pushes to a queue goes astray, and it is told that all went well."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from tests.half_open import HalfOpen
from tests.redis_server import encode

QUEUES = (b"train.", b"registry")


class Swallowing(HalfOpen):
    """While `every` is set, each ring whose number it divides ends in the list `swallowed`, which nobody reads. Counts over all connections."""

    def __init__(self, port: int) -> None:
        self.every: int | None = None
        self.rings = self.swallowed = 0
        super().__init__(port)

    def _pieces(self, source: socket.socket, answers: bool) -> Iterator[bytes]:
        if answers:
            yield from super()._pieces(source, answers)
        else:
            yield from (encode(self._astray(words)) for words in _commands(source))

    def _astray(self, words: list[bytes]) -> list[bytes]:
        if words[0].upper() != b"LPUSH" or not words[1].startswith(QUEUES):
            return words
        self.rings += 1
        if not self.every or self.rings % self.every:
            return words
        self.swallowed += 1
        return [words[0], b"swallowed", *words[2:]]


def _commands(source: socket.socket) -> Iterator[list[bytes]]:
    with source.makefile("rb") as stream:
        while head := stream.readline():
            yield [stream.read(int(stream.readline()[1:]) + 2)[:-2] for _ in range(int(head[1:]))]
