-- The newest releases of each target, with the sums that a list shows.
select r.release_id, r.created_at, r.target, r.uri, r.commit, r.rows,
    (select sum((mode.value)::bigint) from jsonb_each(r.rows) as source, jsonb_each_text(source.value) as mode)::bigint
        as total_rows,
    (select sum((file ->> 'bytes')::bigint)
        from jsonb_each(r.manifest -> 'sources') as source, jsonb_array_elements(source.value -> 'files') as file)::bigint
        as bytes
from publish.releases r
order by r.created_at desc, r.release_id desc, r.target
limit %(most)s
