select audio_file, audio_row_group, audio_row, sample_id, reason
from staging.rejects
where source = %(source)s
order by audio_file, audio_row_group, audio_row
limit %(most)s
