select * from staging.samples where source = %(source)s and sample_id = %(sample_id)s
