-- What the console shows at a glance is counted once, by the load or run that changed it: nobody waits for a count over
-- millions of rows.
create table staging.label_counts (
    source text not null,
    field text not null,
    raw_value text,
    value text,
    rows bigint not null
);
create index on staging.label_counts (source);
comment on table staging.label_counts is 'Samples by published and canonical label, as of the newest load: the most frequent pairs of each field, then one row (both NULL) for all others.';

create table staging.histograms (
    source text not null,
    field text not null,
    low double precision not null,
    high double precision not null,
    rows bigint not null,
    primary key (source, field, low)
);
comment on table staging.histograms is 'Samples by published measurement (speaking rate, loudness), as of the newest load; the outermost bars hold what lies beyond.';

create table generation.coverage (
    source text not null,
    mode text not null,
    staged bigint not null,
    accepted bigint not null,
    pending bigint not null,
    given_up bigint not null,
    counted_at timestamptz not null,
    primary key (source, mode)
);
comment on table generation.coverage is 'State of the prompts at counted_at, which is when a load or a run counted them; responses since then are found by their created_at.';

create table generation.verdict_counts (
    run_id text not null,
    source text not null,
    mode text not null,
    verdict text not null,
    texts bigint not null,
    counted_at timestamptz not null default now(),
    primary key (run_id, source, mode, verdict)
);
create index on generation.verdict_counts (counted_at desc);
comment on table generation.verdict_counts is 'Verdicts on all texts under the current prompts, as each run''s quality_report found them.';

-- What was written since the last count.
create index on generation.responses (created_at) include (source, mode);
create index on generation.attempts (created_at) include (source, mode, attempt);
-- Samples by the rule that an attempt broke, in the console's order.
create index on generation.attempts (verdict, source, sample_id);
-- Samples are indexed by label and by words source by source, after a load: see storage/console.py.
