insert into staging.rejects (source, audio_file, audio_row_group, audio_row, sample_id, reason, raw, load_id)
select source, audio_file, audio_row_group, audio_row, sample_id, reject_reason, raw, %(load_id)s
from {incoming}
where reject_reason is not null
