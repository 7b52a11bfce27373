"""Common Voice 17, English: sentences read aloud by volunteers, with their age, gender and accent where given.

1.1 M validated training clips of some seconds, MP3, 48 kHz. A third or more of the speakers give no age, gender or
accent. English of every accent.

- Hub: fixie-ai/common_voice_17_0, config en, split train, 1,101,170 rows in 90 files
- Licence: CC0-1.0
- Home: https://commonvoice.mozilla.org

A row: path common_voice_en_3.mp3, sentence '"I'm a woman of the desert," she said, averting her face.', age twenties,
gender male_masculine, accent "Normal tamil,Pothu tamil".

Quirks: ages are decades in words, `fourties` spelled so; genders are male_masculine and female_feminine; missing is
the empty string; accents are free text that may hold commas and parentheses.
"""

from include.sources.recipe import SourceRecipe, accent, age, gender, text, verbatim

RECIPE = SourceRecipe(
    name="commonvoice",
    title="Common Voice 17 (English)",
    repository="fixie-ai/common_voice_17_0",
    config="en",
    key="path",
    fields={
        "text": text("sentence"),
        "gender": gender("gender"),
        "age": age("age"),
        "accent": accent("accent"),
        "speaker": verbatim("client_id"),
    },
    licence="CC0-1.0",
    redistributable=True,
    url="https://commonvoice.mozilla.org",
    citation=(
        "R. Ardila, M. Branson, K. Davis, M. Kohler, J. Meyer, M. Henretty, R. Morais, L. Saunders, F. Tyers and "
        "G. Weber, Common Voice: A Massively-Multilingual Speech Corpus, LREC 2020"
    ),
    expected_rows=1_101_170,
    max_rows=100_000,
    schedule="10 4 * * 0",
)
