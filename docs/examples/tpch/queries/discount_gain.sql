-- What a year's small discounted lines would have brought in full (after Q6).
SELECT sum(l_extendedprice * l_discount) AS revenue
FROM lineitem
WHERE l_shipdate >= %(day)s::date AND l_shipdate < %(day)s::date + interval '1 month'
  AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24
