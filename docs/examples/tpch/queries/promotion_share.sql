-- The share of a month's revenue that promoted parts brought (after Q14).
SELECT 100.0 * sum(l_extendedprice * (1 - l_discount)) FILTER (WHERE p_type = 'PROMO')
           / sum(l_extendedprice * (1 - l_discount)) AS share
FROM lineitem
JOIN part ON p_partkey = l_partkey
WHERE l_shipdate >= %(day)s::date AND l_shipdate < %(day)s::date + interval '1 month'
