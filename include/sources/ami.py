"""AMI: the AMI Meeting Corpus, individual headset microphones.

100 h of meetings, cut into utterances: 108,502 in train, many of them 0.2 to 0.5 s ("OKAY"). 16 kHz mono. English of
native and other speakers.

- Hub: edinburghcstr/ami, config ihm, split train. The repository's own branch is a loading script; what is read is the
  branch refs/convert/parquet, which the Hub makes of it. That one was partial when last seen (29,100 rows of train), so
  the count differs from the card's 108,502, and the report of a load says so
- Licence: CC BY 4.0
- Home: https://groups.inf.ed.ac.uk/ami/corpus/

A row: audio_id AMI_EN2001a_H00_MEE068_0000557_0000594, text "OKAY", begin_time 5.57, end_time 5.94, speaker_id MEE068.

Quirks: text is upper case without punctuation; the first letter of speaker_id is the speaker's gender.
"""

import pyarrow as pa
import pyarrow.compute as pc

from include.normalize.columns import NormalisedColumn, map_labels, parse_numbers
from include.normalize.labels import canonical_gender
from include.sources.recipe import Field, SourceRecipe, text, verbatim


def gender_of_speaker(speaker_id: pa.Array) -> NormalisedColumn:
    """N speaker ids (MEE068, FEE042) -> N genders."""
    return map_labels(pc.utf8_slice_codeunits(speaker_id.cast(pa.string()), 0, 1), canonical_gender)


def length_of_utterance(begin_time: pa.Array, end_time: pa.Array) -> NormalisedColumn:
    """N times in seconds of the meeting, twice -> N durations in seconds."""
    return parse_numbers(pc.subtract(end_time, begin_time), above=0.0)


RECIPE = SourceRecipe(
    name="ami",
    title="AMI (individual headsets)",
    repository="edinburghcstr/ami",
    config="ihm",
    branch="refs/convert/parquet",
    # The Hub's conversion names a folder partial-<split> when it stopped early; a mirror may be laid out as usual.
    data_files={"train": ("ihm/train/*.parquet", "ihm/partial-train/*.parquet", "ihm/train-*.parquet")},
    key="audio_id",
    fields={
        "text": text("text"),
        "gender": Field(("speaker_id",), "text", "its first letter", gender_of_speaker),
        "speaker": verbatim("speaker_id"),
        "duration": Field(("begin_time", "end_time"), "number", "their difference, in seconds", length_of_utterance),
    },
    licence="CC-BY-4.0",
    redistributable=True,
    url="https://groups.inf.ed.ac.uk/ami/corpus/",
    citation="J. Carletta et al., The AMI Meeting Corpus: A Pre-announcement, MLMI 2005, doi:10.1007/11677482_3",
    task="transcribe",
    expected_rows=108_502,
    max_rows=80_000,
    schedule="30 4 * * 0",
)
