"""The databases and services that a run needs and perfkit did not start: admitted first, then opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import TypeVar

from perfkit.config import Arm, Config
from perfkit.errors import TargetRefused
from perfkit.guards.address import Address, resolve
from perfkit.guards.admission import Permission, admit, admit_origin
from perfkit.guards.audit import Audit
from perfkit.guards.origin import Origin, resolve_origin
from perfkit.load.limits import Caps
from perfkit.postgres.external import External, open_external

SAFE_METHODS = ("GET",)
_Place = TypeVar("_Place", Address, Origin)
LOADED = ("clone", "in-place")  # ways in which load goes to the server of the target


@dataclass(frozen=True, slots=True)
class Targets:
    """What was named and confirmed, by arm, each resolved once."""

    addresses: Mapping[str, Address]
    origins: Mapping[str, Origin]
    permission: Permission
    pooler: bool = False  # one is declared, whether or not it shows

    def open(self, stack: ExitStack, audit: Audit) -> dict[str, External]:
        """Connect to every database, each once; `stack` closes them. Raises ServerError, TargetRefused."""
        opened: dict[str, External] = {}
        for address in self.addresses.values():
            if (where := address.conninfo()) not in opened:
                opened[where] = stack.enter_context(open_external(address, self.permission, audit))
                opened[where].pooler |= self.pooler
        return {arm: opened[address.conninfo()] for arm, address in self.addresses.items()}


def admitted(settings: Config, arms: Sequence[Arm], permission: Permission) -> Targets:
    """Resolve every target of these arms and let it through the guards. Raises TargetRefused, UsageError."""
    permission = replace(
        permission,
        allow=(*permission.allow, *settings.allow),
        production=(*permission.production, *settings.production),
    )
    addresses: dict[str, Address] = {}
    origins: dict[str, Origin] = {}
    tls = settings.database.tls if settings.database else True
    for arm in arms:
        common = settings.database.target if settings.database else ""
        if named := arm.database or common:
            addresses[arm.name] = _once(resolve(named, tls), addresses.values())
        if url := arm.url or (settings.service.url if settings.service else ""):
            origins[arm.name] = _once(resolve_origin(url), origins.values())
    names = [address.name for address in addresses.values()] + [origin.name for origin in origins.values()]
    for name in () if permission.allow else names:
        raise TargetRefused(f"{name} is not in 'allow'; expected allow = [\"{name}\"] at the top of the configuration")
    for address in {address.name: address for address in addresses.values()}.values():
        admit(address, permission)
        permission = replace(permission, confirm=(*permission.confirm, address.name))  # asked once
    for origin in {origin.name: origin for origin in origins.values()}.values():
        admit_origin(origin, permission)
        permission = replace(permission, confirm=(*permission.confirm, origin.name))
    _require_writes(settings, origins)
    return Targets(addresses, origins, permission, bool(settings.database and settings.database.pooler))


def _once(found: _Place, known: Iterable[_Place]) -> _Place:
    """What was found, unless the same name led elsewhere a moment ago. Raises TargetRefused."""
    for other in known:
        if other.name == found.name and other.address != found.address:
            raise TargetRefused(f"{found.name} is {other.address} and {found.address}; expected one address")
    return found


def caps(settings: Config, targets: Targets) -> dict[str, Caps]:
    """By arm, what bounds its load where that goes to something that perfkit did not start."""
    limits = settings.limits
    bounds = Caps(
        budget="run",
        rate=limits.rate,
        in_flight=limits.in_flight,
        total=limits.requests,
        deadline_ns=monotonic_ns() + int(limits.seconds * 1e9),
        breaker_errors=limits.breaker_errors,
        breaker_ms=limits.breaker_ms,
        breaker_window=limits.breaker_window,
        grace=limits.breaker_grace,
    )
    loaded = targets.addresses if settings.database and settings.database.way in LOADED else ()
    return dict.fromkeys([*loaded, *targets.origins], bounds)


def _require_writes(settings: Config, origins: Mapping[str, Origin]) -> None:
    """A service that perfkit did not start gets requests that may change something only where that is said."""
    writing = [request.name for request in settings.request if request.method not in SAFE_METHODS]
    if origins and writing and not (settings.service and settings.service.writes):
        names = ", ".join(sorted({origin.name for origin in origins.values()}))
        raise TargetRefused(
            f"{names}: request {', '.join(writing)} may change data there; expected 'writes = true' in [service]"
        )
