-- What was shipped up to a day, by state: a large part of all lines, for which no index can help (after Q1).
SELECT l_returnflag, l_linestatus, sum(l_quantity) AS quantity, sum(l_extendedprice) AS gross,
       sum(l_extendedprice * (1 - l_discount)) AS net, avg(l_discount) AS discount, count(*) AS lines
FROM lineitem
WHERE l_shipdate <= %(day)s::date
GROUP BY l_returnflag, l_linestatus
ORDER BY l_returnflag, l_linestatus
