"""Tables, charts, pages and notebook execution; knows no feature."""

# Modules that other rooms may import.
__all__ = ["charts", "html", "render"]
