-- Tells Headrace of new rows at their commit, so that no poll is waited for. For PostgreSQL 14 and later.
--
--     psql "$FLIGHTS_URL" -v table=flights -f notify.sql
--
-- `table` is written as in SQL: with its schema where it is not in the search path (sales.flights), in double quotes where it needs them. Running
-- it again changes nothing. It needs the right to create a function in the table's schema, and a trigger on the table.
--
-- What it costs: at each commit that has inserted rows, PostgreSQL takes one lock for all commits that notify, in all its databases. A transaction
-- that inserts can no longer be prepared (PREPARE TRANSACTION): do not install it where two-phase commit is used. Rows that logical replication
-- brings, and rows in a partition that is attached, are not told; `poll` finds them.
--
-- To remove it (the function too, once no table has the trigger):
--
--     DROP TRIGGER headrace_notify ON flights;
--     DROP FUNCTION headrace_notify();

\set ON_ERROR_STOP on
\set QUIET on
\if :{?table}
\else
    \warn 'Say which table: psql "$FLIGHTS_URL" -v table=flights -f notify.sql'
    DO $$ BEGIN RAISE EXCEPTION 'no table is named'; END $$;
\endif

BEGIN;
SET LOCAL lock_timeout = '10s';  -- rather fail than let writers queue behind this

SELECT :'table'::regclass::oid AS headrace_table \gset
SELECT format('%I.headrace_notify()', nspname) AS headrace_function
FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE pg_class.oid = :headrace_table \gset

CREATE OR REPLACE FUNCTION :headrace_function RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE
    -- An insert into a partition is told as one into the table that it is a part of.
    relation oid := coalesce(pg_partition_root(TG_RELID), TG_RELID);
BEGIN
    -- Of the transactions that are open at once one tells, for its end is waited for by the rows of the others too: commits that notify stand in
    -- line, all others do not.
    IF pg_try_advisory_xact_lock(hashtext('headrace'), relation::bigint::bit(32)::int) THEN
        PERFORM pg_notify('headrace', n.nspname || '.' || c.relname)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    END IF;
    RETURN NULL;
END
$body$;

-- A partition has one of its own, for what is inserted into it by its own name.
SELECT format('CREATE OR REPLACE TRIGGER headrace_notify AFTER INSERT ON %s FOR EACH STATEMENT EXECUTE FUNCTION %s', relid, :'headrace_function')
FROM (SELECT :headrace_table::regclass AS relid UNION SELECT relid FROM pg_partition_tree(:headrace_table)) tables
WHERE relid NOT IN (SELECT oid FROM pg_class WHERE relkind = 'f')
ORDER BY relid <> :headrace_table, relid \gexec

COMMIT;
\echo Headrace is told of new rows in :table from now on.
