"""RAVDESS: the Ryerson Audio-Visual Database of Emotional Speech and Song, speech part.

24 actors (odd numbers male, even female) say two sentences in eight emotions, two intensities (neutral: one) and two
repetitions: 1,440 clips of 3 to 5 s, 48 kHz, five of them stereo. English, North American accent.

- Hub: AbstractTTS/RAVDESS, config default, split train, 1,440 rows, 115 MB
- Licence: CC BY-NC-SA 4.0
- Home: https://zenodo.org/records/1188976

A row: file 03-01-01-01-01-02-01.wav (modality-channel-emotion-intensity-statement-repetition-actor), gender male,
transcription "Kids are talking by the door.", emotion neutral, speaking_rate 6.89, relative_db -21.0.

Quirks: `fearful` and `surprised` are fear and surprise; `calm` has no place among the specification's seven.
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text, verbatim

RECIPE = SourceRecipe(
    name="ravdess",
    title="RAVDESS",
    repository="AbstractTTS/RAVDESS",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("emotion", also={"calm": None}),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
        "speaker": verbatim("file", r"-(?P<name>\d{2})\.\w+$"),
    },
    licence="CC-BY-NC-SA-4.0",
    redistributable=True,
    url="https://zenodo.org/records/1188976",
    citation=(
        "S. R. Livingstone and F. A. Russo, The Ryerson Audio-Visual Database of Emotional Speech and Song "
        "(RAVDESS), PLoS ONE 13(5), 2018, doi:10.1371/journal.pone.0196391"
    ),
    expected_rows=1_440,
    schedule="10 3 * * 0",
)
