-- Who delivered a part, and how much of it (the other lookup).
SELECT s_name, sum(l_quantity) AS quantity, max(l_shipdate) AS latest
FROM lineitem
JOIN supplier ON s_suppkey = l_suppkey
WHERE l_partkey = %(part)s
GROUP BY s_name
ORDER BY quantity DESC, s_name
