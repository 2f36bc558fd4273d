-- Which orders of this customer are still open, the latest first?
SELECT id, ordered_at, amount
FROM orders
WHERE customer_id = %(customer_id)s AND state = 'open'
ORDER BY ordered_at DESC
LIMIT 20
