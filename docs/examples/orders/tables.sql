CREATE TABLE orders (
    id bigint PRIMARY KEY,
    customer_id integer NOT NULL,
    ordered_at timestamptz NOT NULL,
    state text NOT NULL,
    amount numeric(10, 2) NOT NULL
);

INSERT INTO orders
SELECT n,
       1 + abs(hashint4(n)) % 2000,
       timestamptz '2026-01-01' + n * interval '1 minute',
       CASE WHEN n % 7 = 0 THEN 'open' ELSE 'shipped' END,
       n % 300
FROM generate_series(1, 100000) AS n;
