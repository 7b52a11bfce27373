-- A release may be published to several targets, and each of them has its own list.
alter table publish.releases drop constraint releases_pkey;
alter table publish.releases add primary key (target, release_id);
comment on table publish.releases is 'One row per release and target that it was promoted on; rows by source and mode.';
comment on column publish.releases.target is 'Where releases go: local (the releases folder), another folder, s3://bucket/prefix, hf://datasets/org/name.';
comment on column publish.releases.uri is 'Where this release lies.';
comment on column publish.releases.commit is 'Commit on the Hub; NULL elsewhere.';

create function staging.first_samples(wanted text[], most integer) returns table (source text, sample_id text)
language sql stable as $$
    select ordered.source, ordered.sample_id
    from (
        select s.source, s.sample_id,
            row_number() over (partition by s.source order by hashtextextended(s.sample_id, 0), s.sample_id) as place
        from staging.samples s
        where s.source = any(wanted) and s.retired_at is null
    ) as ordered
    where most is null or ordered.place <= most
$$;
comment on function staging.first_samples is 'At most so many samples of each source (NULL: all), by hash of sample_id: the same ones every time.';
