"""Who may be loaded: a target that was named and confirmed, and meant even if it looks like production."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from perfkit.errors import TargetRefused
from perfkit.guards.address import Address, bracketed, canonical
from perfkit.guards.origin import Origin

_PRODUCTION = re.compile(
    r"(?<!pre)(?<!non)(production|(prod|prd)(?![a-z]))"  # at the end of a word too: appprod
    r"|(?<![a-z])(my|our|the)?(prod|prd|live|master|primary)(db|sql|pg|app)?(?![a-z])"
)


@dataclass(frozen=True, slots=True)
class Permission:
    """What the user said: `allow` in the configuration, `confirm` on the command line, or typed when asked.

    Each text is a target's name: `host:port/database` or `https://host:port`.
    """

    allow: tuple[str, ...] = ()
    confirm: tuple[str, ...] = ()
    production: tuple[str, ...] = ()
    ask: Callable[[str], str] | None = None


def admit(target: Address | Origin, permission: Permission) -> None:
    """Raise TargetRefused, saying what to do, unless this database or service may be used."""
    name, allow = target.name, set(map(normal, permission.allow))
    shown = f"{name} ({target.address})" if target.address not in ("", target.host) else name
    if allow and name not in allow:
        raise TargetRefused(f"{shown} is not in 'allow' ({', '.join(sorted(allow))}); expected \"{name}\" in it")
    suspect = looks_like_production(target.words)
    if suspect and name not in map(normal, permission.production):
        raise TargetRefused(
            f"{shown} looks like production ({suspect!r}); if it is meant: --production {name}, or "
            "'production' in the configuration"
        )
    if name not in map(normal, permission.confirm):
        if permission.ask is None:
            raise TargetRefused(f"{shown} was not started by perfkit; if it may be used: --confirm {name}")
        if normal(permission.ask(f"{shown} was not started by perfkit. To use it, type its name")) != name:
            raise TargetRefused(f"{shown}: something else was typed; nothing was sent to it")
    if isinstance(target, Origin) and target.scheme == "http" and not target.local and name not in allow:
        raise TargetRefused(f"{name}: not encrypted; expected https, or this very text in 'allow'")


def normal(text: str) -> str:
    """A target's name in its one spelling; what is none stays as it is and matches nothing."""
    if found := re.fullmatch(r"(https?)://(\[[^\]]+\]|[^/:\[\]]+)(?::(\d+))?/?", text.strip(), re.IGNORECASE):
        scheme = found[1].lower()
        port = int(found[3] or (443 if scheme == "https" else 80))
        return f"{scheme}://{bracketed(canonical(found[2]))}:{port}"
    if found := re.fullmatch(r"(/.*|\[[^\]]+\]|[^/:\[\]]+):(\d+)/(.+)", text.strip()):
        host = found[1] if found[1].startswith("/") else bracketed(canonical(found[1]))
        return f"{host}:{int(found[2])}/{found[3]}"
    return text


def looks_like_production(names: Iterable[str]) -> str:
    """The first of the names that holds a word for production; "" if none does."""
    return next((name for name in names if _PRODUCTION.search(name.lower())), "")
