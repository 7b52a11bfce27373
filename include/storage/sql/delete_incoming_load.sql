delete from staging.incoming_loads where load_id = %(load_id)s
