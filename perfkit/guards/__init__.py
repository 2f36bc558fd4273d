"""Only what perfkit itself started is free: everything else is named, resolved once, confirmed and recorded."""
