"""A database with two tables, an index set for it and a query: what rollbacks are tried on."""

SET = "CREATE INDEX orders_customer ON orders (customer);\nCREATE INDEX others_total ON others (total);\n"
TABLES = """
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, total int NOT NULL);
INSERT INTO orders SELECT n, n % 200, n % 97 FROM generate_series(1, 20000) n;
CREATE TABLE others (id int PRIMARY KEY, total int NOT NULL);
INSERT INTO others SELECT n, n % 97 FROM generate_series(1, 5000) n;
ANALYZE;
"""
QUERY = "SELECT count(*) FROM orders WHERE customer = 7"
