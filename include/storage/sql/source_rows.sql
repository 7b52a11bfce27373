-- The rows of a source's part of a release, as a subquery of other statements: its samples with their accepted responses
-- under the current prompts, or, where the task needs no language model, with their own targets.
--
-- The side of a row hangs on its speaker or text alone, hashed without the source, so that the same speaker or text in
-- two corpora is on the same side of both.
with speakers as materialized (  -- once, not once a row
    select count(distinct speaker) as known
    from staging.samples
    where source = %(source)s and retired_at is null
),
samples as not materialized (
    select s.*,
        case
            when cardinality(%(held_out_speakers)s::text[]) > 0
                then coalesce(s.speaker = any(%(held_out_speakers)s::text[]), false)
            when (select known from speakers) between 1 and %(min_speakers)s - 1 then false
            else ('x' || left(md5(coalesce(
                s.speaker,
                nullif(regexp_replace(lower(s.text), '[^a-z0-9]+', '', 'g'), ''),
                s.text
            )), 7))::bit(28)::integer %% %(held_out_one_in)s = 0
        end as held_out
    from staging.samples s
    where s.source = %(source)s and s.retired_at is null
        and (%(max_samples)s::integer is null or s.sample_id in (
            select sample_id from staging.first_samples(array[%(source)s::text], %(max_samples)s)
        ))
)
select s.source, s.sample_id, s.row_hash, s.blob_id, s.text, s.emotion, s.gender, s.age, s.pace, s.accent, s.volume,
    s.audio_file, s.audio_row_group, s.audio_row, s.held_out,
    %(task)s::text as task, r.mode, r.response, p.mode_hash, p.prompt_hash
from samples s
join generation.prompts p on p.source = s.source and p.sample_id = s.sample_id and p.row_hash = s.row_hash
join generation.responses r
    on r.source = p.source and r.sample_id = p.sample_id and r.mode = p.mode and r.prompt_hash = p.prompt_hash
where %(task)s = 'sift' and r.verdict = 'accepted' and r.mode = any(%(modes)s::text[])
union all
select s.source, s.sample_id, s.row_hash, s.blob_id, s.text, s.emotion, s.gender, s.age, s.pace, s.accent, s.volume,
    s.audio_file, s.audio_row_group, s.audio_row, s.held_out,
    %(task)s::text as task, '' as mode, case %(task)s when 'answer' then s.answer else s.text end, null, null
from samples s
where %(task)s in ('transcribe', 'answer')
