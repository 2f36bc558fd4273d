-- The functions that run for these names, operators and words, with their volatility, and the texts of functions,
-- views and domains, which may name more. PostgreSQL's built-in objects have no text.
WITH called AS (
    SELECT oid FROM pg_proc WHERE proname = ANY (%(calls)s::text[])
    UNION
    SELECT oprcode FROM pg_operator WHERE oprname = ANY (%(symbols)s::text[])
    UNION  -- an implicit cast shows nowhere
    SELECT c.castfunc
    FROM pg_cast c JOIN pg_type t ON t.oid = c.casttarget
    WHERE c.castcontext = 'i' OR t.typname = ANY (%(words)s::text[])
       OR split_part(format_type(t.oid, NULL), ' ', 1) = ANY (%(words)s::text[])  -- integer, double precision
    UNION
    SELECT unnest(ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn,
                        a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[])
    FROM pg_aggregate a JOIN pg_proc p ON p.oid = a.aggfnoid
    WHERE p.proname = ANY (%(calls)s::text[])
)
SELECT CASE n.nspname WHEN 'pg_catalog' THEN '' ELSE n.nspname || '.' END || p.proname AS name,
       p.provolatile = 'v' AS volatile,
       CASE WHEN n.nspname = 'pg_catalog' OR p.prokind = 'a' OR l.lanname NOT IN ('sql', 'plpgsql') THEN ''
            WHEN p.prosrc <> '' THEN p.prosrc
            ELSE pg_get_functiondef(p.oid) END AS text
FROM called
JOIN pg_proc p USING (oid)
JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_language l ON l.oid = p.prolang
WHERE p.prokind <> 'p' AND p.prorettype <> 'tsm_handler'::regtype
UNION
SELECT '', false, pg_get_viewdef(oid)
FROM pg_class
WHERE relkind = 'v' AND relname = ANY (%(words)s::text[]) AND relnamespace <> 'pg_catalog'::regnamespace
UNION
SELECT '', false, pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN pg_type t ON t.oid = c.contypid
WHERE t.typname = ANY (%(words)s::text[]);
