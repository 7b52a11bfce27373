create temporary table new_verdicts (
    source text, sample_id text, mode text, prompt_hash text, verdict text
) on commit drop
