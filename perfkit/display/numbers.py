"""Where `perfkit.numbers` was."""

from perfkit.numbers import count, percent, ratio, seconds, significant, size

__all__ = ["count", "percent", "ratio", "seconds", "significant", "size"]
