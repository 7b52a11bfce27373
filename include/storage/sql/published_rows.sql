-- The rows of a source, in the corpus's order and a clip's modes together; the subquery is source_rows.sql.
select source, sample_id, text, emotion, gender, age, pace, accent, volume, audio_file, audio_row_group, audio_row,
    held_out, task, mode, response
from ({rows}) as accepted
order by audio_file collate "C", audio_row_group, audio_row, mode collate "C"
