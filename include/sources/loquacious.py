"""LoquaciousSet, medium: a mixture of read, spoken and spontaneous English for speech recognition.

About 2,500 h from VoxPopuli, LibriHeavy, YODAS, People's Speech and Common Voice; WAV, 16 kHz mono. English.

- Hub: speechbrain/LoquaciousSet, config medium, split train
- Licence: CC BY 3.0 and CC BY 4.0
- Home: https://huggingface.co/datasets/speechbrain/LoquaciousSet

A row: ID 2412-153948-0000, duration 11.66, spk_id 2412, sex NULL, text "IF THE READER WILL EXCUSE ME I WILL SAY ...".

Quirks: the audio column is `wav`; spk_id and sex are NULL in many rows; text is upper case without punctuation; some of
it is Common Voice, which is a source of its own here.
"""

from include.sources.recipe import SourceRecipe, gender, seconds, text, verbatim

RECIPE = SourceRecipe(
    name="loquacious",
    title="LoquaciousSet (medium)",
    repository="speechbrain/LoquaciousSet",
    config="medium",
    key="ID",
    audio_column="wav",
    fields={
        "text": text("text"),
        "gender": gender("sex"),
        "speaker": verbatim("spk_id"),
        "duration": seconds("duration"),
    },
    licence="CC-BY-3.0 and CC-BY-4.0",
    redistributable=True,
    url="https://huggingface.co/datasets/speechbrain/LoquaciousSet",
    citation=(
        "T. Parcollet, Y. Tseng, S. Zhang and R. C. van Dalen, Loquacious Set: 25,000 Hours of Transcribed and "
        "Diverse English Speech Recognition Data for Research and Commercial Use, Interspeech 2025"
    ),
    task="transcribe",
    max_rows=350_000,
    schedule="20 4 * * 0",
)
