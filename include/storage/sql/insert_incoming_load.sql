insert into staging.incoming_loads (load_id, source, incoming)
values (%(load_id)s, %(source)s, %(incoming)s)
on conflict do nothing
