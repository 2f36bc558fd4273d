"""How objects show themselves, in HTML and in text."""
