with gone as (
    delete from staging.rejects where source = %(source)s
)
insert into staging.rejects (source, audio_file, audio_row_group, audio_row, sample_id, reason, raw, load_id)
select source, audio_file, audio_row_group, audio_row, sample_id, reject_reason, raw, load_id
from staging.incoming
where load_id = %(load_id)s and reject_reason is not null
on conflict (source, audio_file, audio_row_group, audio_row) do update
set sample_id = excluded.sample_id, reason = excluded.reason, raw = excluded.raw, load_id = excluded.load_id
