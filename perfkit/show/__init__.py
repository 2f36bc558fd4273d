"""Tables, charts, pages, notebook execution; knows no feature."""
