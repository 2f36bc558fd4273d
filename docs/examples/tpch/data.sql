-- Deterministic rows: a hash of row and column takes the place of a random number.
CREATE FUNCTION pick(row_number bigint, col text, choices bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (hashtextextended(col, row_number) & 9223372036854775807) % choices;

INSERT INTO region
SELECT n - 1, (ARRAY['AFRICA', 'AMERICA', 'ASIA', 'EUROPE', 'MIDDLE EAST'])[n] FROM generate_series(1, 5) n;

INSERT INTO nation SELECT n, 'NATION ' || n, n % 5 FROM generate_series(0, 24) n;

INSERT INTO supplier
SELECT n, 'Supplier ' || n, pick(n, 's_nation', 25), pick(n, 's_bal', 1100000) / 100.0 - 1000
FROM generate_series(1, :suppliers) n;

INSERT INTO customer
SELECT n, 'Customer ' || n, pick(n, 'c_nation', 25), pick(n, 'c_bal', 1100000) / 100.0 - 1000,
       (ARRAY['AUTOMOBILE', 'BUILDING', 'FURNITURE', 'HOUSEHOLD', 'MACHINERY'])[1 + pick(n, 'segment', 5)]
FROM generate_series(1, :customers) n;

INSERT INTO part
SELECT n, 'part ' || n, 'Brand#' || 11 + pick(n, 'brand', 45),
       (ARRAY['PROMO', 'STANDARD', 'SMALL', 'MEDIUM', 'LARGE', 'ECONOMY'])[1 + pick(n, 'type', 6)],
       1 + pick(n, 'size', 50),
       (ARRAY['SM BOX', 'MED BAG', 'LG CASE', 'JUMBO PKG', 'WRAP JAR'])[1 + pick(n, 'container', 5)]
FROM generate_series(1, :parts) n;

INSERT INTO orders
SELECT n, 1 + pick(n, 'customer', :customers), (ARRAY['F', 'O', 'P'])[1 + pick(n, 'status', 3)],
       1000 + pick(n, 'price', 30000000) / 100.0, date '2019-01-01' + pick(n, 'date', 2400)::integer,
       (ARRAY['1-URGENT', '2-HIGH', '3-MEDIUM', '4-LOW', '5-NONE'])[1 + pick(n, 'priority', 5)]
FROM generate_series(1, :orders) n;

INSERT INTO lineitem
SELECT o_orderkey, line, 1 + pick(key, 'part', :parts), 1 + pick(key, 'supplier', :suppliers),
       1 + pick(key, 'quantity', 50), 900 + pick(key, 'price', 10000000) / 100.0,
       pick(key, 'discount', 11) / 100.0, pick(key, 'tax', 9) / 100.0,
       (ARRAY['A', 'N', 'R'])[1 + pick(key, 'flag', 3)], (ARRAY['F', 'O'])[1 + pick(key, 'line', 2)],
       shipped, shipped + pick(key, 'commit', 60)::integer - 30, shipped + 1 + pick(key, 'receipt', 30)::integer,
       (ARRAY['AIR', 'FOB', 'MAIL', 'RAIL', 'SHIP', 'TRUCK', 'REG AIR'])[1 + pick(key, 'mode', 7)]
FROM orders
CROSS JOIN LATERAL generate_series(1, 1 + pick(o_orderkey, 'lines', 7)) line
CROSS JOIN LATERAL (
    SELECT o_orderkey * 8::bigint + line AS key, o_orderdate + 1 + pick(o_orderkey * 8::bigint + line, 'ship', 120)::integer AS shipped
) l;
