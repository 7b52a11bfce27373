create temporary table new_prompts (sample_id text, row_hash text, prompt_hash text) on commit drop
