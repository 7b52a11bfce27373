select * from staging.loads where load_id = %(load_id)s
