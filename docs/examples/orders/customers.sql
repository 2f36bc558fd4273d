SELECT DISTINCT customer_id FROM orders ORDER BY customer_id LIMIT :rows
