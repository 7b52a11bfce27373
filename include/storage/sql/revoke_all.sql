-- Whatever was granted before: what a role may is what the files grant_*.sql say, and nothing else. {database} is the
-- warehouse's.
revoke all on database {database} from public, sift_ingest, sift_generate, sift_publish, sift_console;
revoke all on schema staging, generation, publish from public, sift_ingest, sift_generate, sift_publish, sift_console;
revoke all on all tables in schema staging, generation, publish
    from public, sift_ingest, sift_generate, sift_publish, sift_console;
revoke all on all functions in schema staging, generation, publish
    from public, sift_ingest, sift_generate, sift_publish, sift_console
