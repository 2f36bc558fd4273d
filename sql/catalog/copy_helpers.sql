-- A number in [0, 1) that depends on row and purpose only.
CREATE FUNCTION pg_temp.pk_uniform(n bigint, purpose text) RETURNS double precision
    LANGUAGE sql IMMUTABLE
    RETURN (hashtextextended(purpose, n) & 9007199254740991) / 9007199254740992.0;
