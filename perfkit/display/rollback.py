"""What a rollback came to: the word, the sentence, and everything that was looked at."""

from __future__ import annotations

from perfkit.display.html import Block, headed, listed
from perfkit.display.table import MARKS, Cell, Table, marked
from perfkit.numbers import unbroken
from perfkit.release.rollback import Rollback, Word

_WORD_STATES = {Word.SAME: "good", Word.DIFFERENT: "bad", Word.OPEN: "unsure"}


def rollback(found: Rollback) -> Block:
    """Whether it is as before, on what that rests, and what was not looked at."""
    state = _WORD_STATES[found.word]
    word = f"{MARKS[state]} {found.word}"
    title = f"Rolled back: is it as before? {found.where}"
    html = headed(state, title, word, found.sentence)
    html += _table(found).to_html() + listed(found.unseen)
    text = [f"{word}  {title}", found.sentence, "", _table(found).to_text()]
    return Block(html, "\n".join([*text, *(f"- {line}" for line in found.unseen)]))


def _table(found: Rollback) -> Table:
    rows = tuple(
        (
            Cell(item.group),
            Cell(item.text),
            marked(_WORD_STATES[item.word], item.word) if item.word else Cell(unbroken("not judged"), state="quiet"),
        )
        for item in found.items
    )
    return Table("What was looked at", ("", "what was found", "it is"), rows, grouped=True)
