update generation.responses r
set rules_version = %(rules_version)s
from new_verdicts v
where v.verdict = 'accepted'
    and r.source = v.source and r.sample_id = v.sample_id and r.mode = v.mode and r.prompt_hash = v.prompt_hash
