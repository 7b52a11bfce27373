insert into generation.prompts (source, sample_id, mode, mode_hash, row_hash, prompt_hash)
select %(source)s, sample_id, %(mode)s, %(mode_hash)s, row_hash, prompt_hash
from new_prompts
on conflict (source, sample_id, mode) do update
set mode_hash = excluded.mode_hash, row_hash = excluded.row_hash, prompt_hash = excluded.prompt_hash
