delete from staging.unmapped_labels where source = %(source)s
