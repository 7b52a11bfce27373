select source, field, raw_value, count
from staging.unmapped_labels
order by source, field, count desc, raw_value
