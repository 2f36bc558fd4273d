"""Tables, charts, pages and notebook execution; knows no feature."""
