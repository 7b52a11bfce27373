-- Each load comes into a table of its own, made like staging.incoming, and drops it when it is merged: nothing has to be
-- searched for or vacuumed, and a million rows leave nothing behind.
drop index staging.incoming_load_id_file_group_idx;
alter table staging.incoming drop column load_id, drop column loaded_at;
comment on table staging.incoming is 'What the table of a load looks like; it holds no rows itself.';

create table staging.incoming_loads (
    load_id text primary key,
    source text not null,
    incoming text not null,
    started_at timestamptz not null default now()
);
comment on table staging.incoming_loads is 'Loads under way, and the table in staging that holds the rows of each.';
