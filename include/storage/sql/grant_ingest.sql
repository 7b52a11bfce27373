-- ingest_*: staging, and the coverage that a load changes. Nothing that a model wrote can be read. A partition, and the
-- table of a load, are granted by the functions that make them, and here again: a load may be under way. They are found
-- by what the owner alone has made; a name in staging.incoming_loads may be anything that this role has written.
grant connect on database {database} to sift_ingest;
grant usage on schema staging, generation to sift_ingest;
grant select, insert, update on staging.samples, generation.coverage to sift_ingest;
grant select, insert on staging.loads to sift_ingest;
grant select, insert, update, delete on staging.incoming_loads to sift_ingest;
grant select, insert, delete on staging.rejects, staging.unmapped_labels, staging.label_counts, staging.histograms
    to sift_ingest;
grant execute on function staging.create_incoming, staging.drop_incoming, staging.create_partition,
    staging.index_samples, staging.first_samples to sift_ingest;
grant select on generation.work to sift_ingest;
grant select on warehouse_version to sift_ingest;
do $$
declare
    made regclass;
begin
    for made in select inhrelid from pg_inherits where inhparent = 'staging.samples'::regclass loop
        execute format('grant select, insert, update on %s to sift_ingest', made);
    end loop;
    for made in
        select oid from pg_class where relnamespace = 'staging'::regnamespace and relkind = 'r'
        and relname ~ '^incoming_[0-9a-f]+$'
    loop
        execute format('grant select, insert, update, delete on %s to sift_ingest', made);
    end loop;
end
$$
