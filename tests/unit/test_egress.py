"""Which URLs and addresses a webhook may reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest

from services.registry_bridge.egress import Blocked, Endpoint, addresses, is_allowed, look_up, parse
from shared import catalog
from shared.errors import Refused, Unavailable

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:7f00:1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::a00:1",
        "64:ff9b:1::808:808",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_that_is_not_public_is_refused_in_every_form(address: str) -> None:
    assert not is_allowed(ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.215.14", "2606:4700::1111", "::ffff:808:808", "64:ff9b::808:808", "2002:808:808::"]
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(ip_address(address))


@pytest.mark.parametrize(
    ("address", "allowed"), [("127.0.0.1", True), ("::ffff:7f00:1", True), ("::1", True), ("10.0.0.1", False)]
)
def test_the_operator_can_allow_a_private_network_and_only_that(address: str, allowed: bool) -> None:
    assert is_allowed(ip_address(address), LOOPBACK) is allowed


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:a9fe:a9fe",
        "fd00:ec2::254",
        "fe80::1",
        "100.100.100.200",
        "168.63.129.16",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_where_a_cloud_keeps_a_machines_credentials_nothing_is_sent_whatever_is_allowed(address: str) -> None:
    assert not is_allowed(ip_address(address), (ip_network("0.0.0.0/0"), ip_network("::/0")))


@pytest.mark.parametrize(
    ("opened", "reached"),
    [
        ("", set()),
        ("allow_private = true", {"10.20.1.1", "10.30.1.1", "127.0.0.1"}),
        ('allow_private = true\nnetworks = ["10.20.0.0/16"]', {"10.20.1.1"}),
    ],
)
def test_the_operator_opens_all_inside_networks_to_a_subscription_or_the_ones_that_he_lists(
    opened: str, reached: set[str]
) -> None:
    text = f'[[subscriptions]]\nurl = "https://hooks.example.com"\nsecret = "env:A"\n{opened}'
    inside = catalog.parse(text.encode()).subscriptions[0].inside
    tried = ("10.20.1.1", "10.30.1.1", "127.0.0.1", "169.254.169.254")
    assert {address for address in tried if is_allowed(ip_address(address), inside)} == reached


@pytest.mark.parametrize("port", [0, 1, 22, 25, 110, 2375, 3306, 5432, 6379, 9200, 11211, 27017])
def test_a_port_of_another_service_is_refused(port: int) -> None:
    with pytest.raises(Blocked, match="blocked_port"):
        parse(f"http://hooks.example.com:{port}/")


@pytest.mark.parametrize(
    "url",
    [
        "https://ok@127.0.0.1/",
        "https://user:password@hooks.example.com/",
        "https://hooks.example.com:99999/",
        "https:///path",
        "https://[fe80::1%25eth0]/",
        "https://[broken/",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "gopher://hooks.example.com/",
        "hooks.example.com",
        "https://hooks.example.com\\@evil.example/",
        "https://hooks.example.com/\r\nX: y",
        "https://hööks.example.com/",
        "https://hooks.example.com/" + "x" * 2000,
        "",
    ],
)
def test_a_url_that_could_mean_two_things_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        parse(url)


def test_a_url_is_read_into_what_is_sent() -> None:
    assert parse("https://Hooks.Example.com/a?b=c#d") == Endpoint(True, "hooks.example.com", 443, "/a?b=c")
    assert parse("http://[::1]:8123").authority == "[::1]:8123"
    assert parse("http://hooks.example.com").authority == "hooks.example.com"


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost"])
def test_what_the_resolver_makes_of_a_number_is_judged_not_its_text(host: str) -> None:
    with pytest.raises((Blocked, Unavailable)):
        addresses(parse(f"http://{host}/"), (), look_up, 5)


def test_one_bad_address_among_good_ones_is_enough_to_refuse() -> None:
    def resolve(host: str, port: int) -> Sequence[str]:
        return ["93.184.215.14", "10.0.0.1"]

    with pytest.raises(Blocked, match=r"blocked_address: hooks.example.com is 10.0.0.1"):
        addresses(parse("https://hooks.example.com/"), (), resolve, 5)


def test_a_resolver_that_hangs_or_fails_is_no_answer() -> None:
    never = threading.Event()

    def hang(host: str, port: int) -> Sequence[str]:
        never.wait(30)
        return []

    def fail(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror("no such name")

    endpoint = parse("https://hooks.example.com/")
    with pytest.raises(Unavailable, match="in time"):
        addresses(endpoint, (), hang, 0.05)
    never.set()
    with pytest.raises(Unavailable, match="no such name"):
        addresses(endpoint, (), fail, 5)
    with pytest.raises(Unavailable, match="no address"):
        addresses(endpoint, (), lambda host, port: [], 5)
