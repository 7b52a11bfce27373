-- What the accepted responses of these sources were made with.
select distinct p.source, p.mode, p.mode_hash, m.inputs
from generation.prompts p
join generation.modes m on m.mode_hash = p.mode_hash
join staging.samples s on s.source = p.source and s.sample_id = p.sample_id and s.retired_at is null
where p.source = any(%(sources)s) and p.mode = any(%(modes)s)
order by p.source, p.mode
