-- What a source's part of a release is made of, as one value: order does not matter, every row does.
select s.source,
    count(*) as rows,
    md5(sum(hashtextextended(row(s.sample_id, s.row_hash, s.blob_id, r.mode, r.prompt_hash, r.response)::text, 0))::text
        || sum(hashtextextended(row(s.sample_id, s.row_hash, s.blob_id, r.mode, r.prompt_hash, r.response)::text, 1))::text)
        as fingerprint
from staging.samples s
join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id and p.row_hash = s.row_hash
join generation.responses r
    on r.source = p.source and r.sample_id = p.sample_id and r.mode = p.mode and r.prompt_hash = p.prompt_hash
where s.source = any(%(sources)s) and s.retired_at is null and r.verdict = 'accepted' and r.mode = any(%(modes)s)
    and (%(max_samples)s::integer is null or (s.source, s.sample_id) in (
        select source, sample_id from staging.first_samples(%(sources)s, %(max_samples)s)
    ))
group by s.source
order by s.source
