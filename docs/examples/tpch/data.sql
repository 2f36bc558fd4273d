-- Deterministic rows: a hash of row and column takes the place of a random number.
CREATE FUNCTION pick(row_number bigint, col text, choices bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (hashtextextended(col, row_number) & 9223372036854775807) % choices;

-- Low numbers often, high ones seldom, as few customers give most orders and few parts make most sales.
CREATE FUNCTION pick_low(row_number bigint, col text, choices bigint) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN pick(row_number, col, choices) * pick(row_number, col || ' again', choices) / choices;

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
       (ARRAY['SM BOX', 'MED BAG', 'LG CASE', 'JUMBO PKG', 'WRAP JAR'])[1 + pick(n, 'container', 5)],
       900 + pick(n, 'price', 110000) / 100.0
FROM generate_series(1, :parts) n;

-- Lines first, for an order's state and price follow from them. Orders come in the order of their days, as in a
-- table that grew; the books close on 30 June 2024, and what is due later has not happened. The best customers and
-- parts are not neighbours: 7919 scatters them.
CREATE TEMP TABLE line AS
SELECT *, CASE WHEN shipped > date '2024-06-30' THEN 'O' ELSE 'F' END AS status,
       shipped + 1 + pick(key, 'receipt', 30)::integer AS received
FROM (
    SELECT n AS orderkey, line, key, ordered, 1 + pick_low(key, 'part', :parts) * 7919 % :parts AS partkey,
           1 + pick(key, 'quantity', 50) AS quantity, ordered + 1 + pick_low(key, 'ship', 120)::integer AS shipped
    FROM generate_series(1, :orders) n
    CROSS JOIN LATERAL (SELECT date '2018-01-01' + (n * 2372::bigint / :orders)::integer AS ordered) o
    CROSS JOIN LATERAL generate_series(1, 1 + pick(n, 'lines', 7)) line
    CROSS JOIN LATERAL (SELECT n * 8::bigint + line AS key) k
) drawn;

INSERT INTO orders
SELECT orderkey, 1 + pick_low(orderkey, 'customer', :customers) * 7919 % :customers,
       CASE WHEN min(status) = max(status) THEN min(status) ELSE 'P' END, sum(quantity * p_price), ordered,
       (ARRAY['1-URGENT', '2-HIGH', '3-MEDIUM', '4-LOW', '5-NONE'])[1 + pick(orderkey, 'priority', 5)]
FROM line
JOIN part ON p_partkey = partkey
GROUP BY orderkey, ordered
ORDER BY orderkey;

INSERT INTO lineitem
SELECT orderkey, line, partkey, 1 + pick(key, 'supplier', :suppliers), quantity, quantity * p_price,
       pick(key, 'discount', 11) / 100.0, pick(key, 'tax', 9) / 100.0,
       CASE WHEN received > date '2024-06-30' THEN 'N' WHEN pick(key, 'flag', 2) = 0 THEN 'A' ELSE 'R' END, status,
       shipped, ordered + 30 + pick(key, 'commit', 61)::integer, received,
       (ARRAY['AIR', 'FOB', 'MAIL', 'RAIL', 'SHIP', 'TRUCK', 'REG AIR'])[1 + pick(key, 'mode', 7)]
FROM line
JOIN part ON p_partkey = partkey
ORDER BY orderkey, line;

DROP TABLE line;
