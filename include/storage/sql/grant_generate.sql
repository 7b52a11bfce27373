-- plan, generate, estimate, quality_report: reads samples and releases, writes what generation keeps. Temporary tables
-- carry new prompts and verdicts in.
grant connect, temporary on database {database} to sift_generate;
grant usage on schema staging, generation, publish to sift_generate;
grant select on staging.samples, staging.loads to sift_generate;
grant execute on function staging.first_samples to sift_generate;
grant select on all tables in schema generation to sift_generate;
grant insert on generation.modes, generation.attempts to sift_generate;
grant insert, update on generation.prompts, generation.runs, generation.quality, generation.coverage,
    generation.verdict_counts to sift_generate;
-- An accepted response is never changed: it is judged again, and then confirmed or moved to the attempts.
grant insert, delete, update (rules_version) on generation.responses to sift_generate;
grant select on publish.releases to sift_generate;
grant select on warehouse_version to sift_generate
