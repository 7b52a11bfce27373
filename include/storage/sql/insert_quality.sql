insert into generation.quality (run_id, mode, measure, value)
values (%(run_id)s, %(mode)s, %(measure)s, %(value)s)
on conflict (run_id, mode, measure) do update set value = excluded.value, created_at = now()
