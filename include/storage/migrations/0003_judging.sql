-- What judged a text: the rules' version and a hash of their severities.
alter table generation.responses alter column rules_version type text using rules_version::text;
alter table generation.attempts alter column rules_version type text using rules_version::text;

create table generation.quality (
    run_id text not null,
    mode text not null,
    measure text not null,
    value double precision not null,
    created_at timestamptz not null default now(),
    primary key (run_id, mode, measure)
);
create index on generation.quality (created_at desc);
comment on table generation.quality is 'Measures of the accepted responses of each mode, as each run''s quality_report found them.';
