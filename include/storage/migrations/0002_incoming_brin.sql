-- Rows of a load lie together in the order they came, so block ranges find them as well as a tree does, and cost
-- nothing while they come in.
drop index staging.incoming_load_id_file_group_idx;
create index incoming_load_idx on staging.incoming using brin (load_id, file_group) with (pages_per_range = 16);
