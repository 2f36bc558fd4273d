-- How far a query counts, which takes a few milliseconds; much longer than what every query takes besides.
CREATE TABLE effort (steps int NOT NULL);
INSERT INTO effort VALUES (50000);
