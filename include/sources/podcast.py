"""PODCAST: a copy of MSP-Podcast, spontaneous speech from podcasts with emotions named by listeners.

149,307 clips of 2 to 12 s, 16 kHz, sixteen emotions: neutral 39,727, concerned 21,813, happy 21,370, sad 11,819, angry
9,596, frustrated 7,560, amused 6,845, annoyed 6,576, disappointed 6,215, excited 4,478, surprise 4,050, contempt 3,747,
confused 2,165, disgust 2,144, fear 697, depressed 505. English.

- Hub: AbstractTTS/PODCAST, config default, split train, 149,307 rows
- Licence: the academic licence of MSP-Podcast; not for redistribution
- Home: https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html

A row: file MSP-PODCAST_0001_0008.wav, gender male, major_emotion neutral, speaking_rate 9.63, relative_db -18.92, and a
transcription in lower case with punctuation.

Quirks: nine of the sixteen classes are outside the specification's seven (below); transcripts hold marks such as
[inaudible 00:01:02], [crosstalk ...] or [Tom 00:02:24], some hold nothing else, some are NULL; gender may be Unknown.
"""

from include.sources.recipe import SourceRecipe, emotion, gender, relative_db, speaking_rate, text

# A shade goes to the class above it in the tree of P. Shaver et al., "Emotion knowledge" (1987): amusement and
# excitement under joy, irritation and exasperation under anger, disappointment and depression under sadness. Contempt,
# concern and confusion belong to none of the seven. See docs/decisions/0003-labels.md.
SHADES = {
    "amused": "happy",
    "excited": "happy",
    "annoyed": "angry",
    "frustrated": "angry",
    "disappointed": "sad",
    "depressed": "sad",
    "contempt": None,
    "concerned": None,
    "confused": None,
}

RECIPE = SourceRecipe(
    name="podcast",
    title="PODCAST (MSP-Podcast)",
    repository="AbstractTTS/PODCAST",
    key="file",
    fields={
        "text": text("transcription"),
        "emotion": emotion("major_emotion", also=SHADES),
        "gender": gender("gender"),
        "pace": speaking_rate("speaking_rate"),
        "volume": relative_db("relative_db"),
    },
    licence="MSP-Podcast academic licence",
    redistributable=False,
    url="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
    citation=(
        "R. Lotfian and C. Busso, Building Naturalistic Emotionally Balanced Speech Corpus by Retrieving Emotional "
        "Speech from Existing Podcast Recordings, IEEE Transactions on Affective Computing 10(4), 2019, "
        "doi:10.1109/TAFFC.2017.2736999"
    ),
    expected_rows=149_307,
    schedule="50 3 * * 0",
)
