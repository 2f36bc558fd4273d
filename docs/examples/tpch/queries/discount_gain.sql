-- What discounts of 5 to 7 percent on small lines took from a month's revenue (after Q6).
SELECT sum(l_extendedprice * l_discount) AS given
FROM lineitem
WHERE l_shipdate >= %(day)s::date AND l_shipdate < %(day)s::date + interval '1 month'
  AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24
