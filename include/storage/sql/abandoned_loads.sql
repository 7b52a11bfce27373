select load_id, incoming
from staging.incoming_loads
where source = %(source)s and started_at < now() - interval '2 days'
for update skip locked
