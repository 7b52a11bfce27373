"""ESD: the Emotional Speech Database, English part.

Ten speakers (0011 to 0020) read 350 sentences in five emotions: 17,500 clips, 16 kHz mono. English; speakers 0001 to
0010 of the corpus are Mandarin and not in this repository.

- Hub: AbstractTTS/ESD_english, config default, split train, 17,500 rows in 3 files
- Licence: for research, by the ESD licence form; not for redistribution
- Home: https://github.com/HLTSingapore/Emotional-Speech-Data

A row: file 0011_000351.wav (speaker_number), gender male, emotion Angry.

Quirks: emotions may be capitalised; the only name of a speaker is the file's prefix.
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text, verbatim

RECIPE = SourceRecipe(
    name="esd",
    title="ESD (English)",
    repository="AbstractTTS/ESD_english",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("emotion"),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
        "speaker": verbatim("file", r"^(?P<name>\d{4})_"),
    },
    licence="research use, by licence form",
    redistributable=False,
    url="https://github.com/HLTSingapore/Emotional-Speech-Data",
    citation=(
        "K. Zhou, B. Sisman, R. Liu and H. Li, Emotional voice conversion: Theory, databases and ESD, Speech "
        "Communication 137, 2022, doi:10.1016/j.specom.2021.11.006"
    ),
    expected_rows=17_500,
    schedule="40 3 * * 0",
)
