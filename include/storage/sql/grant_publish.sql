-- merge and publish: reads what a release is made of, and adds it to the list of releases.
grant connect on database {database} to sift_publish;
grant usage on schema staging, generation, publish to sift_publish;
grant select on staging.samples, staging.loads, staging.unmapped_labels to sift_publish;
grant execute on function staging.first_samples to sift_publish;
grant select on all tables in schema generation to sift_publish;
grant select, insert on publish.releases to sift_publish;
grant select on warehouse_version to sift_publish
