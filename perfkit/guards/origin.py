"""Where an HTTP service is: scheme, host and port of a URL, resolved once."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from perfkit.errors import UsageError
from perfkit.guards.address import addresses, bracketed, canonical, require_sensible

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """One service: as it was named, and the IP address that every connection to it goes to."""

    scheme: str
    host: str
    port: int
    address: str
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """`scheme://host:port`: what the user allows and confirms."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    @property
    def words(self) -> tuple[str, ...]:
        """What could say that it is production."""
        return (self.host, *self.aliases)

    @property
    def local(self) -> bool:
        """Whether connections do not leave this machine, as far as the address tells."""
        return ipaddress.ip_address(self.address).is_loopback


def resolve_origin(url: str) -> Origin:
    """The origin of a base URL. Raises UsageError for more than an origin, ServerError, TargetRefused."""
    try:
        if not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+/?", url):
            raise ValueError
        parts = urlsplit(url)
        host, port = canonical(parts.hostname or ""), parts.port or _PORTS[parts.scheme]
        if not host:
            raise ValueError
    except ValueError:
        raise UsageError(f"url = {_shown(url)!r}; expected http(s)://host[:port] and nothing more") from None
    found, aliases = addresses(host, port)
    require_sensible(host, found[0])
    return Origin(parts.scheme, host, port, found[0], aliases)


def _shown(url: str) -> str:
    """A URL that may be shown: without what may be a password or a token."""
    return re.sub(r"[?#].*", "?...", re.sub(r"//.*@", "//...@", url))
