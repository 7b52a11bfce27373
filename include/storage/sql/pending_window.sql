-- The pending rule: staged, not retired samples with no accepted response under the current prompt, less those that
-- were given up. One shard of one mode, the next rows of it; which sample belongs to which shard is decided by hash.
select w.source, w.sample_id, w.prompt_hash, w.tries + 1 as attempt, w.tries + w.demoted + 1 as draw,
    s.text, s.emotion, s.gender, s.age, s.pace, s.volume, s.accent
from generation.work w
join staging.samples s on s.source = w.source and s.sample_id = w.sample_id
where w.mode = %(mode)s
    and w.mode_hash = %(mode_hash)s
    and w.source = any(%(sources)s)
    and mod(hashtextextended(w.sample_id, 0) & 9223372036854775807, %(shards)s) = %(shard)s
    and w.current
    and not w.accepted
    and w.tries < %(max_attempts)s
    and (%(max_samples)s::integer is null or (w.source, w.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
order by w.tries, w.source, w.sample_id
limit %(window)s
