-- Orders of a quarter with a line that came later than agreed, by priority (after Q4).
SELECT o_orderpriority, count(*) AS orders
FROM orders
WHERE o_orderdate >= %(day)s::date AND o_orderdate < %(day)s::date + interval '3 months'
  AND EXISTS (SELECT FROM lineitem WHERE l_orderkey = o_orderkey AND l_commitdate < l_receiptdate)
GROUP BY o_orderpriority
ORDER BY o_orderpriority
