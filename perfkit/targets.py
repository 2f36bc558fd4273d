"""The databases and services that a run needs and perfkit did not start: admitted first, then opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import TypeVar

from perfkit.config import Arm, Config
from perfkit.errors import TargetRefused
from perfkit.guards.address import Address, resolve
from perfkit.guards.admission import Permission, admit
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

    def open(self, audit: Audit) -> dict[str, External]:
        """Connect to every database, each once. Raises ServerError, TargetRefused."""
        opened: dict[str, External] = {}
        for address in self.addresses.values():
            if (where := address.conninfo()) not in opened:
                opened[where] = open_external(address, self.permission, audit)
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
    database, service = settings.database, settings.service
    for arm in arms:
        if named := arm.database or (database.target if database else ""):
            addresses[arm.name] = _once(resolve(named, not database or database.tls), addresses.values())
        if url := arm.url or (service.url if service else ""):
            origins[arm.name] = _once(resolve_origin(url), origins.values())
    found: list[Address | Origin] = [*addresses.values(), *origins.values()]
    for name, target in {target.name: target for target in found}.items():
        if not permission.allow:
            expected = f'allow = ["{name}"] at the top of the configuration'
            raise TargetRefused(f"{name} is not in 'allow'; expected {expected}")
        admit(target, permission)
        permission = replace(permission, confirm=(*permission.confirm, name))  # asked once
    _require_writes(settings, origins)
    return Targets(addresses, origins, permission, bool(database and database.pooler))


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
