"""SAVEE: Surrey Audio-Visual Expressed Emotion.

Four men (DC, JE, JK, KL; 27 to 31 years) say TIMIT sentences in seven emotions, neutral twice as often as the others:
480 clips of 1.6 to 7.1 s, 44.1 kHz mono. British English.

- Hub: AbstractTTS/SAVEE, config default, split train, 480 rows, 56 MB
- Licence: for research, on request from the University of Surrey; not for redistribution
- Home: https://kahlan.eps.surrey.ac.uk/savee/

A row: file DC_a01.wav (speaker, emotion code, number), gender male, emotion anger.

Quirks: the classes are nouns (anger, happiness, sadness).
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text, verbatim

RECIPE = SourceRecipe(
    name="savee",
    title="SAVEE",
    repository="AbstractTTS/SAVEE",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("emotion"),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
        "speaker": verbatim("file", r"^(?P<name>DC|JE|JK|KL)_"),
    },
    licence="research use, on request",
    redistributable=False,
    url="https://kahlan.eps.surrey.ac.uk/savee/",
    citation=(
        "S. Haq and P. J. B. Jackson, Multimodal Emotion Recognition, in W. Wang (ed.), Machine Audition: "
        "Principles, Algorithms and Systems, IGI Global, 2010"
    ),
    expected_rows=480,
    schedule="30 3 * * 0",
)
