"""The published record: its columns, and how N staged samples with their responses become N records.

Column names, types and missing values are the drop-in contract with `mazesmazes/sift-audio-2` and its trainer. Both
`datasets` 3.6 and 5.2 must open what is described here, so the descriptions that they read (the Parquet schema's
metadata, the card's `dataset_info`) are written in the form that both understand.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from include.modes import MODES

if TYPE_CHECKING:
    from datasets import Features

SAMPLING_RATE = 16_000
"""Hz at which the `Audio` feature decodes; the bytes keep the rate that their corpus published."""

AUDIO_PLACEHOLDER = "<audio>"
"""The token where the trainer scatters the encoder's frames; exactly one a record."""

AUDIO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MESSAGES_TYPE = pa.list_(
    # "element" is what Parquet calls it; under Arrow's own name the schema would not read back equal.
    pa.field("element", pa.struct([("role", pa.string()), ("content", pa.string())]))
)

STRING_COLUMNS = (
    "text",
    "emotion",
    "gender",
    "age",
    "pace",
    "accent",
    "volume",
    "mode",
    "sift_response",
    "source_dataset",
    "sample_id",
    "task",
    "instruction",
)
"""The string columns, in the order they are published; "" where a value is missing."""


def _features_json() -> dict[str, Any]:
    """The features as `datasets` 3 writes them; `datasets` 5 reads this form too, but not the other way round."""
    text = {"dtype": "string", "_type": "Value"}
    return {
        "audio": {"sampling_rate": SAMPLING_RATE, "_type": "Audio"},
        **dict.fromkeys(STRING_COLUMNS, text),
        "messages": [{"role": text, "content": text}],
    }


PUBLISHED_SCHEMA = pa.schema(
    [
        ("audio", AUDIO_TYPE),
        *((name, pa.string()) for name in STRING_COLUMNS),
        ("messages", MESSAGES_TYPE),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _features_json()}})},
)
"""One published record a row: one clip under one mode, or for one task that has no modes."""

# What the trained model is asked where no mode says it, verbatim from the trainer; a blank joins it to the target.
_TASK_INSTRUCTIONS = {"transcribe": "Transcribe: ", "answer": ""}

# File systems allow 255 bytes, and a name may get a suffix.
_MOST_NAME_BYTES = 200

# Columns of the warehouse's rows under the names they are published by; the rest keep their names.
_PUBLISHED_AS = {"sift_response": "response", "source_dataset": "source"}


def published_features() -> Features:
    """Return the record's features; imports `datasets`."""
    from datasets import Features

    return Features.from_dict(_features_json())


def card_features() -> list[dict[str, Any]]:
    """Return the features as a card's `dataset_info` lists them, the same for `datasets` 3 and 5."""
    return [
        {"name": "audio", "dtype": {"audio": {"sampling_rate": SAMPLING_RATE}}},
        *({"name": name, "dtype": "string"} for name in STRING_COLUMNS),
        {
            "name": "messages",
            "list": [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}],
        },
    ]


def modes_or_tasks(rows: pa.Table) -> pa.StringArray:
    """Name what N rows ask: their mode, or their task where they have none.

    Args:
        rows: N rows or records with `mode` and `task`.

    Returns:
        N names, by which rows are counted.
    """
    mode = _text(rows, "mode")
    return pc.if_else(pc.equal(mode, ""), _text(rows, "task"), mode)


def file_names(paths: pa.Array) -> pa.StringArray:
    """Keep of N paths what names a clip: whoever writes a record's clip to a file writes it where it belongs.

    Args:
        paths: As the corpus publishes them, of whatever length and bytes.

    Returns:
        N names of at most 200 bytes without folders, control characters, and what shells, pages or file systems act
        upon; NULL where nothing is left.
    """
    raw = paths.cast(pa.binary())
    tail = pc.binary_slice(raw, -_MOST_NAME_BYTES, None)  # the end, which holds the extension
    name = pc.replace_substring_regex(tail, rb"(?s)^.*[/\\]", b"")
    name = pc.replace_substring_regex(name, rb"[^\x20-\x7e\x80-\xff]|[<>:\"|?*&'`$;]", b"_")
    name = pc.replace_substring_regex(name, rb"^[ .]+", b"")
    text = pa.array(
        [None if value is None else value.decode(errors="replace") for value in name.to_pylist()], pa.string()
    )
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def build_records(rows: pa.Table, audio: pa.StructArray) -> pa.Table:
    """Build the records of N responses, columns at a time.

    Args:
        rows: N rows with `source, sample_id, text, emotion, gender, age, pace, accent, volume, task, mode, response`.
        audio: N structs {bytes, path}, in the same order. The bytes may be dictionary-encoded, so that a clip is held
            once however many rows it has; the column is passed on as it is.

    Returns:
        N records with the columns of PUBLISHED_SCHEMA, in the order given.

    Raises:
        ValueError: If a row has a mode that is not registered, or none and a task that needs one, naming it.
    """
    instruction = _instructions(modes_or_tasks(rows))
    columns = {
        name: instruction if name == "instruction" else _text(rows, _PUBLISHED_AS.get(name, name))
        for name in STRING_COLUMNS
    }
    messages = _messages(instruction, columns["sift_response"])
    return pa.table({"audio": audio, **columns, "messages": messages})


def _text(rows: pa.Table, name: str) -> pa.StringArray:
    """One column as strings, "" where it is missing."""
    return pc.fill_null(rows.column(name).combine_chunks().cast(pa.string()), "")


def _instructions(names: pa.StringArray) -> pa.StringArray:
    """What each row's mode or task asks the trained model, or ""."""
    known = {name: mode.instruction for name, mode in MODES.items()} | _TASK_INSTRUCTIONS
    index = pc.index_in(names, value_set=pa.array(list(known), pa.string()))
    if index.null_count:
        unknown = sorted(set(names.filter(index.is_null()).to_pylist()))
        raise ValueError(f"rows have modes {unknown}, which are not among {list(known)}")
    return pa.array(list(known.values()), pa.string()).take(index)


def _messages(instruction: pa.StringArray, response: pa.StringArray) -> pa.ListArray:
    """N chats of two messages; the user's is joined as the trainer joins it: placeholder, blank, instruction."""
    count = len(instruction)
    asked = pc.binary_join_element_wise(pa.scalar(AUDIO_PLACEHOLDER), instruction, pa.scalar(" "))
    user = pc.if_else(pc.equal(instruction, ""), pa.scalar(AUDIO_PLACEHOLDER), asked)
    # Message 2i is row i's question, message 2i + 1 its answer.
    turns = np.arange(2 * count, dtype=np.int32)
    content = pa.concat_arrays([user, response]).take(pa.array(turns // 2 + turns % 2 * count))
    role = pa.array(["user", "assistant"]).take(pa.array(turns % 2))
    offsets = pa.array(np.arange(0, 2 * count + 1, 2, dtype=np.int32))
    message = pa.StructArray.from_arrays([role, content], ["role", "content"])
    return pa.ListArray.from_arrays(offsets, message, type=MESSAGES_TYPE)
