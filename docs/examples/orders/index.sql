CREATE INDEX orders_customer_date ON orders (customer_id, ordered_at DESC);
ANALYZE orders;
