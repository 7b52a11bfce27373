delete from staging.rejects where source = %(source)s
