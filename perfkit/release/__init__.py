"""Go or no-go, decision record, rollback."""
