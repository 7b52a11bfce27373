create schema staging;
create schema generation;
create schema publish;

-- Staging -----------------------------------------------------------------------------------------------------------

create table staging.samples (
    source text not null,
    sample_id text not null,
    split text not null,
    text text not null,
    language text not null,
    emotion text,
    gender text,
    age text,
    pace text,
    volume text,
    accent text,
    speaker text,
    duration real,
    raw jsonb not null,
    answer text,
    audio_file text not null,
    audio_row_group integer not null,
    audio_row integer not null,
    blob_id text not null,
    revision text not null,
    row_hash text not null,
    first_seen timestamptz not null default now(),
    last_changed timestamptz not null default now(),
    retired_at timestamptz,
    primary key (source, sample_id)
) partition by list (source);
comment on table staging.samples is 'One row per utterance; a partition per source, made by its first load.';
comment on column staging.samples.revision is 'Revision in which the row last changed or moved; its bytes lie there.';
comment on column staging.samples.row_hash is 'Identity of the metadata; where the bytes lie is not part of it.';
comment on column staging.samples.retired_at is 'Set when the row is no longer in the corpus; retired rows are no work.';

-- Rows of loads under way. Unlogged: a load that dies is run again, and merge checks that every row is there.
create unlogged table staging.incoming (
    load_id text not null,
    file_group integer not null,
    source text not null,
    sample_id text,
    split text,
    text text,
    language text,
    emotion text,
    gender text,
    age text,
    pace text,
    volume text,
    accent text,
    speaker text,
    duration real,
    raw jsonb,
    answer text,
    audio_file text not null,
    audio_row_group integer not null,
    audio_row integer not null,
    blob_id text not null,
    reject_reason text,
    loaded_at timestamptz not null default now()
);
create index on staging.incoming (load_id, file_group);

create table staging.rejects (
    source text not null,
    audio_file text not null,
    audio_row_group integer not null,
    audio_row integer not null,
    sample_id text,
    reason text not null,
    raw jsonb,
    load_id text not null,
    primary key (source, audio_file, audio_row_group, audio_row)
);
comment on table staging.rejects is 'Rows of the newest load that can never be used, with the reason.';

create table staging.unmapped_labels (
    source text not null,
    field text not null,
    raw_value text not null,
    count bigint not null,
    load_id text not null,
    primary key (source, field, raw_value)
);
comment on table staging.unmapped_labels is 'Labels of the newest load that no table maps; they are NULL in samples.';

create table staging.loads (
    load_id text primary key,
    source text not null,
    revision text not null,
    published_at timestamptz,
    code_hash text not null,
    read bigint not null,
    staged bigint not null,
    unchanged bigint not null,
    changed bigint not null,
    moved bigint not null,
    retired bigint not null,
    rejected jsonb not null,
    seconds real not null,
    finished_at timestamptz not null default now()
);
create index on staging.loads (source, finished_at desc);
comment on column staging.loads.code_hash is 'Identity of the code that normalised the rows: another one stages the same revision again.';
comment on table staging.loads is 'One row per merged load: read = staged + unchanged + changed + sum(rejected); moved rows are among the unchanged.';

-- Generation --------------------------------------------------------------------------------------------------------

create table generation.modes (
    mode_hash text primary key,
    mode text not null,
    inputs jsonb not null,
    first_seen timestamptz not null default now()
);
comment on table generation.modes is 'All that a mode_hash covers: system prompt, template, frozen date, model, revision, sampling, dtype.';

create table generation.prompts (
    source text not null,
    sample_id text not null,
    mode text not null,
    mode_hash text not null,
    row_hash text not null,
    prompt_hash text not null,
    primary key (source, sample_id, mode)
);
comment on table generation.prompts is 'The current prompt of each sample and mode, kept in step by plan; row_hash tells whether it still is.';

create table generation.responses (
    source text not null,
    sample_id text not null,
    mode text not null,
    prompt_hash text not null,
    response text not null,
    finish_reason text not null,
    prompt_tokens integer not null,
    response_tokens integer not null,
    seed bigint not null,
    attempt integer not null,
    engine text not null,
    rules_version integer not null,
    verdict text not null,
    created_at timestamptz not null default now(),
    primary key (source, sample_id, mode, prompt_hash)
);
comment on table generation.responses is 'Accepted responses, insert-only: an earlier prompt or model costs no GPU work again.';

create table generation.attempts (
    source text not null,
    sample_id text not null,
    mode text not null,
    prompt_hash text not null,
    attempt integer not null,
    response text not null,
    finish_reason text not null,
    prompt_tokens integer not null,
    response_tokens integer not null,
    seed bigint not null,
    engine text not null,
    rules_version integer not null,
    verdict text not null,
    created_at timestamptz not null default now(),
    primary key (source, sample_id, mode, prompt_hash, attempt)
);
comment on table generation.attempts is 'Every rejected text with the rule that it broke.';

create table generation.runs (
    run_id text not null,
    mode text not null,
    shard integer not null,
    shards integer not null,
    status text not null,
    device text,
    total integer not null default 0,
    accepted integer not null default 0,
    rejected integer not null default 0,
    given_up integer not null default 0,
    response_tokens bigint not null default 0,
    tokens_per_s real,
    eta_s real,
    started_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (run_id, mode, shard)
);
comment on table generation.runs is 'Live progress of each generation task; done = accepted + given_up.';

-- One row per sample and mode that is asked for: is its current prompt answered, and how often was it tried?
create view generation.work as
select
    p.source,
    p.sample_id,
    p.mode,
    p.mode_hash,
    p.prompt_hash,
    p.row_hash = s.row_hash as current,
    r.prompt_hash is not null as accepted,
    coalesce(a.tries, 0) as tries
from staging.samples s
join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id
left join generation.responses r
    on r.source = p.source
    and r.sample_id = p.sample_id
    and r.mode = p.mode
    and r.prompt_hash = p.prompt_hash
    and r.verdict = 'accepted'
left join (
    select source, sample_id, mode, prompt_hash, max(attempt) as tries
    from generation.attempts
    group by source, sample_id, mode, prompt_hash
) a
    on a.source = p.source
    and a.sample_id = p.sample_id
    and a.mode = p.mode
    and a.prompt_hash = p.prompt_hash
where s.retired_at is null;

-- Publishing --------------------------------------------------------------------------------------------------------

create table publish.releases (
    release_id text primary key,
    created_at timestamptz not null,
    target text not null,
    uri text not null,
    commit text,
    rows jsonb not null,
    manifest jsonb not null
);
comment on table publish.releases is 'One row per promoted release; rows by source and mode.';
