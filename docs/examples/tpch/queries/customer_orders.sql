-- A customer's orders with their lines: the one that a person waits for.
SELECT o_orderkey, o_orderdate, o_orderstatus, count(l_orderkey) AS lines, sum(l_extendedprice) AS price
FROM orders
JOIN lineitem ON l_orderkey = o_orderkey
WHERE o_custkey = %(customer)s
GROUP BY o_orderkey
ORDER BY o_orderdate DESC
