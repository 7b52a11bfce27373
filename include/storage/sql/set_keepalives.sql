-- The server gives up a machine that has lost its power after two minutes; by default it would ask after two hours.
select
    set_config('tcp_keepalives_idle', '60', false),
    set_config('tcp_keepalives_interval', '20', false),
    set_config('tcp_keepalives_count', '3', false)
