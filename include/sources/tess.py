"""TESS: the Toronto Emotional Speech Set.

Two actresses, OAF (64 years) and YAF (26), say "Say the word ..." with 200 words in seven emotions: 2,800 clips of 1.3
to 3 s, 24,414 Hz mono, one of them (OAF_food_fear.wav) 96 kHz. English.

- Hub: AbstractTTS/TESS, config default, split train, 2,800 rows expected, 184 MB
- Licence: CC BY-NC-ND 4.0; no derivatives, so its audio is not published again
- Home: https://doi.org/10.5683/SP2/E8H2MF

A row: file OAF_back_angry.wav (speaker_word_emotion), gender female, transcription "Say the word back.", emotion angry.

Quirks: surprise is spelled `ps`, `pleasant surprise` or `pleasant_surprised`, depending on the copy.
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text, verbatim

RECIPE = SourceRecipe(
    name="tess",
    title="TESS",
    repository="AbstractTTS/TESS",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("emotion"),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
        "speaker": verbatim("file", r"^(?P<name>[OY]AF)_"),
    },
    licence="CC-BY-NC-ND-4.0",
    redistributable=False,
    url="https://doi.org/10.5683/SP2/E8H2MF",
    citation=(
        "M. K. Pichora-Fuller and K. Dupuis, Toronto emotional speech set (TESS), Borealis, 2020, "
        "doi:10.5683/SP2/E8H2MF"
    ),
    expected_rows=2_800,
    schedule="20 3 * * 0",
)
