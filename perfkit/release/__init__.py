"""Go or no-go, decision record, rollback."""

# Modules that other rooms may import.
__all__ = ["decision", "gate", "live", "report", "rollback"]
