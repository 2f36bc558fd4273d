-- The twenty customers who sent most back in a quarter (after Q10).
SELECT c_custkey, c_name, sum(l_extendedprice * (1 - l_discount)) AS lost, c_acctbal
FROM customer
JOIN orders ON o_custkey = c_custkey
JOIN lineitem ON l_orderkey = o_orderkey
WHERE o_orderdate >= %(day)s::date AND o_orderdate < %(day)s::date + interval '3 months'
  AND l_returnflag = 'R'
GROUP BY c_custkey, c_name, c_acctbal
ORDER BY lost DESC, c_custkey
LIMIT 20
