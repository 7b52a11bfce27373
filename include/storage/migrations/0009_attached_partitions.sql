-- `create table ... partition of` locks staging.samples against everybody: the first load of a source waited for the COPY
-- of a release to end, and whoever wanted to read anything waited behind it. A table that is made beside and attached
-- keeps out other such loads alone, and comes out the same. Columns' comments are the parent's.
create or replace function staging.create_partition(source text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    partition text := 'samples_' || staging.check_name(source, '[a-z][a-z0-9_]{0,39}');
begin
    -- Two at once: the second one waits, and finds the first one's.
    perform pg_advisory_xact_lock(hashtextextended('staging.' || partition, 0));
    execute format(
        'create table if not exists staging.%I (like staging.samples including all excluding comments)', partition
    );
    if not exists (select from pg_inherits where inhrelid = format('staging.%I', partition)::regclass) then
        execute format('alter table staging.samples attach partition staging.%I for values in (%L)', partition, source);
    end if;
    perform staging.share_with_caller(format('staging.%I', partition)::regclass, '{select,insert,update}');
end
$$;
