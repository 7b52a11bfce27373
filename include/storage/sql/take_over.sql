-- Whatever of the warehouse somebody else owns: a superuser who has made it, or restored it from another server.
do $$
declare
    made text;
begin
    for made in
        select format('schema %I', nspname) from pg_namespace
        where nspname in ('staging', 'generation', 'publish') and nspowner <> 'sift'::regrole
        union all
        select format('%s %s', case relkind when 'v' then 'view' else 'table' end, oid::regclass) from pg_class
        where (relnamespace::regnamespace::text in ('staging', 'generation', 'publish') or oid = to_regclass('warehouse_version'))
            and relkind in ('r', 'p', 'v') and relowner <> 'sift'::regrole
        union all
        select format('function %s', oid::regprocedure) from pg_proc
        where pronamespace::regnamespace::text in ('staging', 'generation', 'publish') and proowner <> 'sift'::regrole
    loop
        execute format('alter %s owner to sift', made);
    end loop;
end
$$
