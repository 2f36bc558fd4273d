-- Foreign keys without an index, and the dates that queries start from.
CREATE INDEX orders_custkey ON orders (o_custkey);
CREATE INDEX orders_orderdate ON orders (o_orderdate);
CREATE INDEX lineitem_partkey ON lineitem (l_partkey);
CREATE INDEX lineitem_shipdate ON lineitem (l_shipdate);
CREATE INDEX lineitem_receiptdate ON lineitem (l_receiptdate);
