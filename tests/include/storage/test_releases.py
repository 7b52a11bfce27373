"""What a release is made of: targets by task, and which rows are held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from uuid import uuid4

import pyarrow as pa
import pytest

from include.schema import STAGED_SCHEMA
from include.storage.releases import (
    SourceChangedError,
    SourceContents,
    SourceQuery,
    published_rows,
    source_contents,
)
from include.storage.staging import IncomingLoad, merge_load
from include.storage.warehouse import Warehouse


def sample(number: int, **changes: object) -> dict[str, object]:
    return {
        "source": "toy",
        "sample_id": f"toy/{number:05}",
        "split": "train",
        "text": f"sentence number {number}.",
        "language": "en",
        "raw": "{}",
        "audio_file": "data/train-00000.parquet",
        "audio_row_group": number // 10,
        "audio_row": number % 10,
        "blob_id": "blob",
        **changes,
    }


def stage(warehouse: Warehouse, samples: Iterable[dict[str, object]]) -> None:
    """Make these all that the source `toy` holds."""
    rows = pa.Table.from_pylist(list(samples), schema=STAGED_SCHEMA)
    incoming = IncomingLoad(uuid4().hex)
    with warehouse.connection() as connection:
        incoming.prepare(connection, "toy")
        incoming.append(connection, 0, rows.append_column("reject_reason", pa.nulls(len(rows), pa.string())))
    merge_load(
        warehouse,
        load_id=incoming.load_id,
        source="toy",
        revision="r1",
        published_at=None,
        code_hash="code",
        rows_by_group={0: len(rows)},
        unmapped={},
        max_reject_share=0,
        largest_class={},
        force=True,  # half of them may go
    )


def query(task: str = "transcribe", *held_out_speakers: str) -> SourceQuery:
    return SourceQuery(source="toy", task=task, modes=["sift_s"], held_out_speakers=held_out_speakers)


def rows_of(warehouse: Warehouse, asked: SourceQuery) -> list[dict[str, object]]:
    return pa.concat_tables(published_rows(warehouse, asked)).to_pylist()


def contents_of(warehouse: Warehouse, asked: SourceQuery) -> SourceContents:
    contents = source_contents(warehouse, asked)
    assert contents is not None
    return contents


def test_rows_are_given_out_only_as_they_were_planned(warehouse: Warehouse) -> None:
    stage(warehouse, map(sample, range(9)))
    planned = contents_of(warehouse, query()).fingerprint
    rows = published_rows(warehouse, query(), planned)
    first = next(rows)
    stage(warehouse, [sample(number, text=f"other {number}") for number in range(9)])
    # What is being read is of one moment; what begins later is refused.
    assert all(text.startswith("sentence") for table in (first, *rows) for text in table["text"].to_pylist())
    with pytest.raises(SourceChangedError, match="toy was changed after its release was planned"):
        next(published_rows(warehouse, query(), planned))
    with warehouse.connection() as connection:
        connection.execute("update staging.samples set retired_at = now()")
    with pytest.raises(SourceChangedError):
        next(published_rows(warehouse, query(), planned))


def held_out(warehouse: Warehouse, *held_out_speakers: str) -> set[str]:
    """Sample ids on the held-out side."""
    rows = rows_of(warehouse, query("transcribe", *held_out_speakers))
    return {row["sample_id"] for row in rows if row["held_out"]}


def is_chosen(key: str) -> bool:
    """The rule, written again: users can find out for themselves which side a speaker is on."""
    return int(hashlib.md5(key.encode()).hexdigest()[:7], 16) % 100 == 0


def test_transcripts_and_answers_are_targets_without_a_mode(warehouse: Warehouse) -> None:
    stage(warehouse, [sample(n, answer=f"answer {n}") for n in range(3)])
    for task, target in (("transcribe", "sentence number 1."), ("answer", "answer 1")):
        row = rows_of(warehouse, query(task))[1]
        assert (row["task"], row["mode"], row["response"]) == (task, "", target)
        assert row["text"] == "sentence number 1."
        contents = contents_of(warehouse, query(task))
        assert (contents.rows, contents.mode_hashes, contents.prompts) == ({"train": {task: 3}}, {}, {})


def test_a_sift_source_without_responses_has_no_rows(warehouse: Warehouse) -> None:
    stage(warehouse, [sample(n) for n in range(3)])
    assert source_contents(warehouse, query("sift")) is None


def test_one_speaker_in_a_hundred_is_held_out_whole(warehouse: Warehouse) -> None:
    speakers = [f"speaker {n}" for n in range(400)]
    stage(warehouse, [sample(n, speaker=speakers[n % 400]) for n in range(2000)])
    expected = {speaker for speaker in speakers if is_chosen(speaker)}
    assert 1 <= len(expected) <= 8
    chosen = held_out(warehouse)
    assert chosen == {f"toy/{n:05}" for n in range(2000) if speakers[n % 400] in expected}
    assert contents_of(warehouse, query()).rows["heldout"] == {"transcribe": len(chosen)}


@pytest.mark.parametrize("known", [1, 199])
def test_a_corpus_with_few_speakers_holds_nothing_out(warehouse: Warehouse, known: int) -> None:
    stage(warehouse, [sample(n, speaker=f"speaker {n % known}" if n % 3 else None) for n in range(2000)])
    assert held_out(warehouse) == set()


def test_without_speakers_the_same_words_are_on_the_same_side(warehouse: Warehouse) -> None:
    chosen = next(n for n in range(1000) if is_chosen(f"whatissaid{n}"))
    texts = [f"what is said {chosen}", f"What is - said, {chosen}!", f"what is said {chosen + 1}", "!?", "!?"]
    stage(warehouse, [sample(n, text=text) for n, text in enumerate(texts)])
    assert held_out(warehouse) == {"toy/00000", "toy/00001"}


def test_texts_in_another_script_are_told_apart(warehouse: Warehouse) -> None:
    chosen = next(text for n in range(1000) if is_chosen(text := "早" * (n + 1)))
    stage(warehouse, [sample(0, text=chosen), sample(1, text="早")])
    assert held_out(warehouse) == {"toy/00000"}


def test_rows_of_unknown_speakers_go_by_their_text(warehouse: Warehouse) -> None:
    chosen = next(n for n in range(1000) if is_chosen(f"whatissaid{n}"))
    spoken = [sample(n, speaker=f"speaker {n}") for n in range(200)]
    stage(warehouse, [*spoken, sample(200, text=f"what is said {chosen}"), sample(201, text="other words")])
    assert "toy/00200" in held_out(warehouse) and "toy/00201" not in held_out(warehouse)


def test_speakers_that_the_recipe_names_are_held_out_and_no_others(warehouse: Warehouse) -> None:
    stage(warehouse, [sample(n, speaker=("KL", "DC", None)[n % 3]) for n in range(9)])
    assert held_out(warehouse, "KL", "nobody") == {"toy/00000", "toy/00003", "toy/00006"}


def test_order_never_matters_and_every_row_does(warehouse: Warehouse) -> None:
    samples = [sample(n, speaker=f"speaker {n % 250}") for n in range(500)]
    stage(warehouse, samples)
    first, rows = contents_of(warehouse, query()), rows_of(warehouse, query())
    stage(warehouse, samples[:250])  # the others are retired, then come back
    smaller = contents_of(warehouse, query())
    random.Random(0).shuffle(samples)
    stage(warehouse, samples)
    assert contents_of(warehouse, query()) == first
    assert rows_of(warehouse, query()) == rows
    assert smaller.fingerprint != first.fingerprint
    stage(warehouse, [{**row, "text": "other words"} if row["sample_id"] == "toy/00007" else row for row in samples])
    assert contents_of(warehouse, query()).fingerprint != first.fingerprint


def test_the_side_is_part_of_the_fingerprint(warehouse: Warehouse) -> None:
    stage(warehouse, [sample(n, speaker="KL" if n else "DC") for n in range(5)])
    assert contents_of(warehouse, query()).fingerprint != contents_of(warehouse, query("transcribe", "DC")).fingerprint


def test_rows_come_clip_by_clip_in_the_corpus_order(warehouse: Warehouse) -> None:
    stage(warehouse, [sample(n) for n in random.Random(1).sample(range(300), 300)])
    places = [(row["audio_row_group"], row["audio_row"]) for row in rows_of(warehouse, query())]
    assert places == [(n // 10, n % 10) for n in range(300)]
