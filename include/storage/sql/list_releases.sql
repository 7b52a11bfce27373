-- The newest releases of all targets, with the sums that a list shows.
select r.release_id, r.created_at, r.target, r.uri, r.commit, r.rows,
    (select sum((mode.value)::bigint) from jsonb_each(r.rows) as source, jsonb_each_text(source.value) as mode)::bigint
        as total_rows,
    (select sum(file_bytes::bigint)
        from jsonb_path_query(r.manifest, '$.sources.*.splits.*.files[*].bytes') as file_bytes)::bigint as bytes
from publish.releases r
order by r.created_at desc, r.release_id desc, r.target
limit %(most)s
