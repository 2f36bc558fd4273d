"""The variants of the system: how each is got (clones, or in place one after another) and served."""
