-- The first row of a key, in the corpus's order, is the one that counts.
update {incoming} as i
set reject_reason = 'duplicate key'
from (
    select
        ctid,
        row_number() over (partition by sample_id order by audio_file, audio_row_group, audio_row) as occurrence
    from {incoming}
    where reject_reason is null and sample_id in (
        select sample_id
        from {incoming}
        where reject_reason is null
        group by sample_id
        having count(*) > 1
    )
) as ranked
where i.ctid = ranked.ctid and ranked.occurrence > 1
