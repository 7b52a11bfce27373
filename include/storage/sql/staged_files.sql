select distinct audio_file, blob_id
from staging.samples
where source = %(source)s and retired_at is null
