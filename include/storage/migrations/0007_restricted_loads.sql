-- A load changes the shape of the warehouse: a table of its own, a partition by source, indexes. PostgreSQL lets only the
-- owner do that, so these functions do it in the owner's name and take nothing but a name that they check. Whoever may
-- call them is said by include/storage/roles.py; nobody may by default.
--
-- search_path is fixed, and temporary objects come last in it: no caller can put a table or function of theirs in the
-- way of ours.
create function staging.check_name(name text, pattern text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
    if name is null or name !~ ('^' || pattern || '$') then
        raise exception 'staging: % is no name that a load may give', coalesce(quote_literal(name), 'NULL')
            using errcode = 'invalid_parameter_value';
    end if;
    return name;
end
$$;

-- What was made in the owner's name is worked on in the caller's. Asked before it is granted: two tasks that grant the
-- same at once would disturb each other.
create function staging.share_with_caller(made regclass, privileges text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    privilege text;
begin
    foreach privilege in array privileges loop
        if not has_table_privilege(session_user, made, privilege) then
            execute format('grant %s on %s to %I', privilege, made, session_user);
        end if;
    end loop;
end
$$;

create function staging.create_incoming(incoming text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform staging.check_name(incoming, 'incoming_[0-9a-f]{16}');
    execute format('create unlogged table if not exists staging.%I (like staging.incoming including defaults)', incoming);
    perform staging.share_with_caller(format('staging.%I', incoming)::regclass, '{select,insert,update,delete}');
end
$$;
comment on function staging.create_incoming is 'Makes the table of a load, if it is not there.';

create function staging.drop_incoming(incoming text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform staging.check_name(incoming, 'incoming_[0-9a-f]{16}');
    execute format('drop table if exists staging.%I', incoming);
end
$$;
comment on function staging.drop_incoming is 'Drops the table of a load, if it is there.';

create function staging.create_partition(source text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    partition text := 'samples_' || staging.check_name(source, '[a-z][a-z0-9_]{0,39}');
begin
    execute format('create table if not exists staging.%I partition of staging.samples for values in (%L)', partition, source);
    perform staging.share_with_caller(format('staging.%I', partition)::regclass, '{select,insert,update}');
end
$$;
comment on function staging.create_partition is 'Makes the partition of staging.samples for a source, if it is not there.';

-- Full-text search needs no extension, which the embedded server does not have; 'simple' neither stems nor drops words, in
-- whatever language. A text vector has a size limit: no transcript may fail a merge for being long. The planner chooses
-- an index by what analyze knows of the words.
create function staging.index_samples(source text) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp set maintenance_work_mem = '256MB' as $$
declare
    partition text := 'samples_' || staging.check_name(source, '[a-z][a-z0-9_]{0,39}');
begin
    execute format(
        'create index if not exists %I on staging.%I using gin (to_tsvector(''simple'', left(text, 10000)))',
        partition || '_words', partition
    );
    execute format('create index if not exists %I on staging.%I (emotion, source, sample_id)', partition || '_emotion', partition);
    execute format('create index if not exists %I on staging.%I (age, source, sample_id)', partition || '_age', partition);
    execute format('analyze staging.%I', partition);
end
$$;
comment on function staging.index_samples is 'Indexes a source''s samples by words and labels; what is indexed already stays as it is.';

revoke all on function staging.check_name, staging.share_with_caller, staging.create_incoming, staging.drop_incoming,
    staging.create_partition, staging.index_samples from public;
