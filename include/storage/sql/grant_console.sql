-- The console: reads.
grant connect on database {database} to sift_console;
grant usage on schema staging, generation, publish to sift_console;
grant select on all tables in schema staging, generation, publish to sift_console;
grant select on warehouse_version to sift_console
