insert into generation.verdict_counts (run_id, source, mode, verdict, texts)
values (%(run_id)s, %(source)s, %(mode)s, %(verdict)s, %(texts)s)
on conflict (run_id, source, mode, verdict) do update set texts = excluded.texts, counted_at = now()
