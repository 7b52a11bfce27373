-- One statement makes the partition equal to the load: either the whole new revision or the old one.
-- {partition} is the source's partition, {incoming} the load's table; values are bound.
with merged as (
    merge into {partition} as s
    using (
        select
            *,
            to_hex(hash_record_extended(
                row(split, text, language, emotion, gender, age, pace, volume, accent, speaker, duration, raw, answer), 0
            )) as row_hash
        from {incoming}
        where reject_reason is null
    ) as i
    on s.sample_id = i.sample_id
    when matched and (s.row_hash <> i.row_hash or s.retired_at is not null) then update set
        split = i.split, text = i.text, language = i.language, emotion = i.emotion, gender = i.gender, age = i.age,
        pace = i.pace, volume = i.volume, accent = i.accent, speaker = i.speaker, duration = i.duration, raw = i.raw,
        answer = i.answer, audio_file = i.audio_file, audio_row_group = i.audio_row_group, audio_row = i.audio_row,
        blob_id = i.blob_id, revision = %(revision)s, row_hash = i.row_hash, last_changed = now(), retired_at = null
    -- Only where the bytes lie differs: not a change of the row.
    when matched and (s.audio_file, s.audio_row_group, s.audio_row, s.blob_id)
        is distinct from (i.audio_file, i.audio_row_group, i.audio_row, i.blob_id) then update set
        audio_file = i.audio_file, audio_row_group = i.audio_row_group, audio_row = i.audio_row,
        blob_id = i.blob_id, revision = %(revision)s
    when not matched then insert (
        source, sample_id, split, text, language, emotion, gender, age, pace, volume, accent, speaker, duration, raw,
        answer, audio_file, audio_row_group, audio_row, blob_id, revision, row_hash
    ) values (
        i.source, i.sample_id, i.split, i.text, i.language, i.emotion, i.gender, i.age, i.pace, i.volume, i.accent,
        i.speaker, i.duration, i.raw, i.answer, i.audio_file, i.audio_row_group, i.audio_row, i.blob_id,
        %(revision)s, i.row_hash
    )
    when not matched by source and s.retired_at is null then update set retired_at = now()
    returning
        case
            when merge_action() = 'INSERT' then 'staged'
            when new.retired_at is not null then 'retired'
            when old.retired_at is not null then 'returned'
            when old.row_hash = new.row_hash then 'moved'
            else 'changed'
        end as outcome
)
select outcome, count(*) as rows from merged group by outcome
