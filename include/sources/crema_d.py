"""CREMA-D: the Crowd-sourced Emotional Multimodal Actors Dataset.

91 actors aged 20 to 74 (48 male, 43 female) say 12 sentences in six emotions: 7,442 clips of 1.3 to 5 s, 16 kHz mono.
English.

- Hub: AbstractTTS/CREMA-D, config default, split train, 7,442 rows, 606 MB
- Licence: ODbL 1.0, its contents DbCL 1.0
- Home: https://github.com/CheyneyComputerScience/CREMA-D

A row: file 1001_DFA_ANG_XX.wav (actor_sentence_emotion_level), gender Male, transcription "Don't forget a jacket.",
major_emotion anger, speaking_rate 7.91, relative_db -20.28.

Quirks: `major_emotion` is what the actor was asked for, not what the crowd heard: the vote columns (`angry`, `sad` and
so on) disagree with it in more than half of the clips, and are not read. Genders are capitalised.
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text, verbatim

RECIPE = SourceRecipe(
    name="crema_d",
    title="CREMA-D",
    repository="AbstractTTS/CREMA-D",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("major_emotion"),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
        "speaker": verbatim("file", r"^(?P<name>\d{4})_"),
    },
    licence="ODbL-1.0",
    redistributable=True,
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    citation=(
        "H. Cao, D. G. Cooper, M. K. Keutmann, R. C. Gur, A. Nenkova and R. Verma, CREMA-D: Crowd-sourced "
        "Emotional Multimodal Actors Dataset, IEEE Transactions on Affective Computing 5(4), 2014, "
        "doi:10.1109/TAFFC.2014.2336244"
    ),
    expected_rows=7_442,
    schedule="0 3 * * 0",
)
