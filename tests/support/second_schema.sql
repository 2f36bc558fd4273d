-- A shop: few indexes beyond the primary keys, and enough rows that each case is clear.
CREATE TABLE countries (code text PRIMARY KEY, name text NOT NULL);
INSERT INTO countries SELECT 'C' || n, 'Country ' || n FROM generate_series(1, 150) n;

CREATE TABLE customers (
    id integer PRIMARY KEY, email text NOT NULL, name text NOT NULL, country text NOT NULL,
    joined_at timestamptz NOT NULL, vip boolean NOT NULL
);
INSERT INTO customers
SELECT n, 'Anna' || n || '@Example.org', 'Name ' || n, 'C' || n % 150 + 1,
       '2020-01-01Z'::timestamptz + n * interval '2 hours', n % 400 = 0
FROM generate_series(1, 20000) n;

CREATE TABLE products (id integer PRIMARY KEY, sku text NOT NULL, category integer NOT NULL, price numeric(8, 2) NOT NULL);
INSERT INTO products SELECT n, 'SKU-' || lpad((n * 37 % 3000)::text, 5, '0'), n % 40, n % 97 FROM generate_series(1, 3000) n;

-- A customer has ten orders; one in 1000 is open, the newest come last.
CREATE TABLE orders (
    id integer PRIMARY KEY, customer_id integer NOT NULL, status text NOT NULL,
    placed_at timestamptz NOT NULL, shipped_at timestamptz, total numeric(10, 2) NOT NULL, channel integer NOT NULL,
    note text
);
INSERT INTO orders
SELECT n, n * 7919 % 20000 + 1, CASE WHEN n % 1000 = 0 THEN 'open' WHEN n % 20 = 1 THEN 'returned' ELSE 'delivered' END,
       '2023-01-01Z'::timestamptz + n * interval '5 minutes',
       CASE WHEN n % 500 <> 0 THEN '2023-01-02Z'::timestamptz + n * interval '5 minutes' END,
       n % 9973 / 7.0, n % 50, 'Please ring twice, then leave it with the neighbours ' || n
FROM generate_series(1, 200000) n;

CREATE TABLE items (
    order_id integer NOT NULL, line integer NOT NULL, product_id integer NOT NULL,
    quantity integer NOT NULL, packing text NOT NULL, PRIMARY KEY (order_id, line)
);
INSERT INTO items SELECT n / 2 + 1, n % 2, n * 31 % 2990 + 1, n % 9 + 1, 'in a box with straw ' || n FROM generate_series(0, 299999) n;

CREATE TABLE reviews (
    id integer PRIMARY KEY, product_id integer NOT NULL, stars integer NOT NULL,
    body text NOT NULL
);
INSERT INTO reviews SELECT n, n * 17 % 2990 + 1, n % 5 + 1, 'Review ' || n FROM generate_series(1, 60000) n;

CREATE TABLE events (id integer PRIMARY KEY, customer_id integer NOT NULL, at timestamptz NOT NULL, payload jsonb NOT NULL);
INSERT INTO events
SELECT n, n * 13 % 200 + 1, '2024-01-01Z'::timestamptz + n * interval '1 minute',
       jsonb_build_object('device', 'd' || n % 5000, 'kind', n % 7)
FROM generate_series(1, 100000) n;

-- After the rows, which is quicker.
ALTER TABLE customers ADD FOREIGN KEY (country) REFERENCES countries;
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers;
ALTER TABLE items ADD FOREIGN KEY (order_id) REFERENCES orders, ADD FOREIGN KEY (product_id) REFERENCES products;
ALTER TABLE reviews ADD FOREIGN KEY (product_id) REFERENCES products ON DELETE CASCADE;
