-- What a source's part of a release is made of, by side and mode: counts, and digests in which order does not matter but
-- every row does. The subquery is source_rows.sql.
select held_out, task, mode, mode_hash,
    count(*) as rows,
    coalesce(sum(hashtextextended(prompt_hash, 0)), 0)::text as prompts,
    sum(hashtextextended(row(sample_id, row_hash, blob_id, held_out, task, mode, prompt_hash, response)::text, 0))::text
        as digest,
    sum(hashtextextended(row(sample_id, row_hash, blob_id, held_out, task, mode, prompt_hash, response)::text, 1))::text
        as digest_2
from ({rows}) as accepted
group by held_out, task, mode, mode_hash
