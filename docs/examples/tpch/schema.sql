-- A wholesaler's orders, after the shape of the TPC-H benchmark (not its text, and not comparable with it).
CREATE TABLE region (r_regionkey integer PRIMARY KEY, r_name text NOT NULL);

CREATE TABLE nation (
    n_nationkey integer PRIMARY KEY,
    n_name text NOT NULL,
    n_regionkey integer NOT NULL REFERENCES region
);

CREATE TABLE supplier (
    s_suppkey integer PRIMARY KEY,
    s_name text NOT NULL,
    s_nationkey integer NOT NULL REFERENCES nation,
    s_acctbal numeric(15, 2) NOT NULL
);

CREATE TABLE customer (
    c_custkey integer PRIMARY KEY,
    c_name text NOT NULL,
    c_nationkey integer NOT NULL REFERENCES nation,
    c_acctbal numeric(15, 2) NOT NULL,
    c_mktsegment text NOT NULL
);

CREATE TABLE part (
    p_partkey integer PRIMARY KEY,
    p_name text NOT NULL,
    p_brand text NOT NULL,
    p_type text NOT NULL,
    p_size integer NOT NULL,
    p_container text NOT NULL,
    p_price numeric(15, 2) NOT NULL
);

CREATE TABLE orders (
    o_orderkey integer PRIMARY KEY,
    o_custkey integer NOT NULL REFERENCES customer,
    o_orderstatus text NOT NULL,
    o_totalprice numeric(15, 2) NOT NULL,
    o_orderdate date NOT NULL,
    o_orderpriority text NOT NULL
);

CREATE TABLE lineitem (
    l_orderkey integer NOT NULL REFERENCES orders,
    l_linenumber integer NOT NULL,
    l_partkey integer NOT NULL REFERENCES part,
    l_suppkey integer NOT NULL REFERENCES supplier,
    l_quantity numeric(15, 2) NOT NULL,
    l_extendedprice numeric(15, 2) NOT NULL,
    l_discount numeric(15, 2) NOT NULL,
    l_tax numeric(15, 2) NOT NULL,
    l_returnflag text NOT NULL,
    l_linestatus text NOT NULL,
    l_shipdate date NOT NULL,
    l_commitdate date NOT NULL,
    l_receiptdate date NOT NULL,
    l_shipmode text NOT NULL,
    PRIMARY KEY (l_orderkey, l_linenumber)
);
