"""Where a webhook may go: the guard between a subscriber's URL and the network that this process stands in.

A name is resolved once, every address it has is judged, and the connection goes to a judged address, never to the name again: a
second look could give another answer (DNS rebinding). `ipaddress.is_global` alone is not enough: it takes NAT64, 6to4 and multicast
for global, and Python 3.11 some special ranges too.
"""

from __future__ import annotations

import queue
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from shared.errors import Refused, Unavailable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

_WEB = frozenset({80, 443})
_SERVICES = frozenset(
    {
        1433,
        1521,
        2049,
        2375,
        2376,
        2379,
        2380,
        3306,
        3389,
        4369,
        5432,
        5672,
        5900,
        5984,
        6000,
        6379,
        6380,
        6443,
        7000,
        7001,
        9042,
        9092,
    }
    | {9200, 9300, 10250, 11211, 15672, 26379, 27017, 27018, 50000}
)
_NEVER: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's host agent, on a public address
        "192.0.0.0/24",  # IETF protocol assignments; a cloud's metadata lives at .192
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "64:ff9b:1::/48",  # NAT64 for local use
        "2001::/23",  # IETF protocol assignments, Teredo among them
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
    )
)
_NEVER_INSIDE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",
        "168.63.129.16/32",
        "192.0.0.0/24",
        "100.100.100.200/32",
    )
)
"""Where clouds tell a machine its credentials: no receiver of webhooks, also where a private network is allowed."""
_NAT64 = IPv6Network("64:ff9b::/96")


class Blocked(Refused):
    """An address or a port that no webhook goes to; the message starts with `blocked_address` or `blocked_port`."""


@dataclass(frozen=True)
class Endpoint:
    """A URL that has passed `parse`; `target` is what stands in the request line."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def parse(url: str) -> Endpoint:
    """The endpoint that the URL names; looks at nothing but the text. Raises `Refused`, or `Blocked` for its port."""
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url) or len(url) > 2000:
        raise Refused(
            "a webhook's URL is plain ASCII without spaces or backslashes (an international name in its xn-- form)"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Refused(f"a webhook's URL cannot be read: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise Refused("a webhook's URL is https://host/path (or http://), without user name and password")
    secure = parts.scheme == "https"
    port = port if port is not None else 443 if secure else 80
    if (port < 1024 and port not in _WEB) or port in _SERVICES:
        raise Blocked(
            f"blocked_port: {port} belongs to another kind of service; webhooks go to 80, 443 or a free port above 1023"
        )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(secure, parts.hostname, port, target)


def addresses(endpoint: Endpoint, allowed: Sequence[Network], resolve: Resolver, timeout_s: float) -> list[str]:
    """Every address of the endpoint, each judged. Raises `Blocked` if one of them is neither public nor in a network in `allowed`."""
    found = [ip_address(text.partition("%")[0]) for text in _resolve(endpoint, resolve, timeout_s)]
    if not found:
        raise Unavailable(f"{endpoint.host} has no address")
    for address in found:
        if not is_allowed(address, allowed):
            raise Blocked(
                f"blocked_address: {endpoint.host} is {address}, which is not public; allow_private = true of the subscription allows it"
            )
    return [str(address) for address in found]


def is_allowed(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """True for a public address, and for one in `allowed`. An IPv4 address inside an IPv6 one is judged itself."""
    inner = _embedded(address)
    if inner is not None:
        return is_allowed(inner, allowed)
    if address.is_multicast or any(address in network for network in _NEVER_INSIDE):
        return False
    if any(address in network for network in allowed):
        return True
    special = address.is_multicast or address.is_reserved or any(address in network for network in _NEVER)
    return address.is_global and not special


def look_up(host: str, port: int) -> list[str]:
    """The system's resolver. It also reads `2130706433` and `0x7f.1` as addresses, so what it says is judged, not the text."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def _embedded(address: Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _resolve(endpoint: Endpoint, resolve: Resolver, timeout_s: float) -> Sequence[str]:
    """In a thread of its own, for the system's resolver knows no deadline; one that hangs is left behind."""
    answers: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(endpoint.host, endpoint.port))
        except (OSError, UnicodeError) as error:
            answers.put(OSError(str(error)))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(timeout_s, 0.0))
    except queue.Empty:
        raise Unavailable(f"{endpoint.host} was not resolved in time") from None
    if isinstance(answer, OSError):
        raise Unavailable(f"{endpoint.host} cannot be resolved: {answer}")
    return answer
