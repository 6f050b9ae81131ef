"""A consumer's wish to be told, as the operator writes it into headrace.toml."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from shared.errors import ConfigurationError
from shared.explain import closest, refusal
from shared.notices import EVERYTHING, PATTERNS, NoticeType
from shared.values import Name, SecretReference, Strict, check_url

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
EVERYWHERE = ("0.0.0.0/0", "::/0")


def check_hook_url(url: str) -> str:
    """http or https to a named host, without credentials; where it may lead is checked again at each sending."""
    parts = check_url(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname:
        raise ValueError("a subscription is called at an https: URL")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError(
            "a subscription's URL has no user, no password and no #fragment; what is sent is signed with `secret`"
        )
    return url


def _is_private(url: str) -> bool:
    """What the text alone shows: plain http, or an address inside. Every sending resolves the name and looks again."""
    host = urlsplit(url).hostname or ""
    if urlsplit(url).scheme == "http" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return re.fullmatch(r"[0-9.]+|0x[0-9a-f.x]+", host) is not None
    return not address.is_global or address.is_multicast


def check_network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            f'{text[:60]!r} is no network, such as "10.20.0.0/16" (no bit set behind its length)'
        ) from None


def check_pattern(text: str) -> str:
    if text not in PATTERNS:
        raise ValueError(f"there is no notice {text[:60]!r}{closest(text, PATTERNS)}")
    return text


HookUrl = Annotated[str, AfterValidator(check_hook_url), Field(title="URL")]
ModelChoice = Annotated[str, Field(title="model name")]
NetworkText = Annotated[str, AfterValidator(check_network), Field(title="network")]
NoticePattern = Annotated[str, AfterValidator(check_pattern), Field(title="notice type")]


class Subscription(Strict):
    """A consumer's wish to be told."""

    name: Name = Field(
        description="Names it in the ledger.", examples=["storefront"], json_schema_extra={"default": "the URL's host"}
    )
    url: HookUrl = Field(
        description="Called for each notice.", examples=["https://storefront.example.com/hooks/models"]
    )
    secret: SecretReference = Field(
        description="The variable with the signing secret: `whsec_` and 24 to 64 bytes in base64.",
        examples=["env:STOREFRONT_HOOK_SECRET"],
    )
    models: tuple[ModelChoice, ...] = Field(
        (EVERYTHING,),
        min_length=1,
        description='The models that it is about; `"*"` for all.',
        examples=[["flight-delays"]],
    )
    types: tuple[NoticePattern, ...] = Field(
        (NoticeType.VERSION_PROMOTED.value, NoticeType.VERSION_ROLLED_BACK.value),
        min_length=1,
        description='The notices that it gets; `"version.*"` for all about versions, `"*"` for all.',
        examples=[["version.promoted", "version.rolled_back"]],
    )
    allow_private: bool = Field(False, description="Allow plain http and addresses inside your own network.")
    networks: tuple[NetworkText, ...] = Field(
        (),
        max_length=100,
        description="The inside networks that `allow_private` opens; all of them without it.",
        examples=[["10.20.0.0/16"]],
    )

    @property
    def inside(self) -> tuple[Network, ...]:
        """The networks in which it may be called although they are not public."""
        return tuple(map(ipaddress.ip_network, self.networks or EVERYWHERE)) if self.allow_private else ()

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if not self.allow_private and _is_private(self.url):
            raise refusal(
                (("url",), "plain http or an inside address; use https to a public host, or add allow_private = true")
            )
        if self.networks and not self.allow_private:
            raise refusal((("networks",), "opens nothing by itself; add allow_private = true"))
        if NoticeType.ARRIVAL_OBSERVED in self.types and EVERYTHING not in self.models:
            advice = 'write models = ["*"], or leave "arrival.observed" out'
            raise refusal((("types",), f"arrivals belong to no single model; {advice}"))
        return self


def check_secret(variable: str, value: str) -> str:
    """The value of `variable`, if it is a Standard Webhooks secret; never part of the message."""
    try:
        key = base64.b64decode(value.removeprefix("whsec_"), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if not value.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ConfigurationError(
            f"the variable {variable} does not hold a webhook secret: whsec_ and 24 to 64 random bytes in base64; "
            "make one with: python3 -c 'import base64,os; print(\"whsec_\" + base64.b64encode(os.urandom(32)).decode())'"
        )
    return value


def name_subscriptions(given: object) -> object:
    """Give each subscription without a name that of its host, and a number where that is taken."""
    if not isinstance(given, (list, tuple)) or not all(isinstance(entry, dict) for entry in given):
        return given
    taken = {str(entry["name"]) for entry in given if "name" in entry}
    return [entry if "name" in entry else {"name": _free_name(entry.get("url"), taken), **entry} for entry in given]


def _free_name(url: object, taken: set[str]) -> str:
    found = re.search(r"://([^/:@?#\[\]]+)", url) if isinstance(url, str) else None
    base = re.sub(r"[^a-z0-9.-]+", "-", found[1].lower() if found else "").strip(".-")[:58] or "subscription"
    name = next(name for n in range(1, 10_000) if (name := base if n == 1 else f"{base}-{n}") not in taken)
    taken.add(name)
    return name
