"""What the doctor found: what perfkit can do on a database, and the SQL that allows the rest."""

from __future__ import annotations

from perfkit.display.html import Block, code, escape
from perfkit.display.table import Cell, Table, marked
from perfkit.postgres.capabilities import Capabilities

_STATES = {"yes": "good", "partly": "unsure", "no": "bad"}


def capabilities(found: Capabilities) -> Block:
    """A table of what can be done, and what an owner could run so that the rest can be done too."""
    rows = tuple((Cell(c.name), marked(_STATES[c.state], c.state), Cell(c.detail)) for c in found.found)
    table = Table(f"{found.target}, PostgreSQL {found.version}", ("what", "", "how, or why not"), rows)
    allow = {statement: c.name for c in found.found for statement in c.allow}
    if not allow:
        return Block(table.to_html(), table.to_text())
    lines = [_line(statement, what) for statement, what in allow.items()]
    title = "What its owner or an administrator can run to allow more"
    html = f"{table.to_html()}<h3>{escape(title)}</h3>{code(chr(10).join(lines), name=title)}"
    return Block(html, "\n".join([table.to_text(), "", f"{title}:", *(f"  {line}" for line in lines)]))


def _line(statement: str, what: str) -> str:
    """A statement with what it is for; a command of perfkit's, and what is no statement, as they are."""
    end = "" if statement.startswith("perfkit ") or " and a restart" in statement else ";"
    return f"{statement}{end}  -- {what}"
