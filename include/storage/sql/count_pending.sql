-- Pending work by mode, source and shard: see pending_window.sql for the rule.
select w.mode, w.source, mod(hashtextextended(w.sample_id, 0) & 9223372036854775807, %(shards)s)::integer as shard,
    count(*) as rows
from generation.work w
where w.mode = any(%(modes)s)
    and w.source = any(%(sources)s)
    and w.current
    and not w.accepted
    and w.tries < %(max_attempts)s
    and (%(max_samples)s::integer is null or (w.source, w.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
group by w.mode, w.source, shard
