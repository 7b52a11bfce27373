"""MELD: the Multimodal EmotionLines Dataset, utterances from the TV series Friends.

13,708 utterances of 1,433 dialogues, median 2.5 s, seven emotions, neutral the largest class (47 %). English.

- Hub: garam-icecream/MELD, config default, one split train, 13.7 k rows
- Licence: GPL-3.0 for the annotations; the audio is from a TV show and not cleared for redistribution
- Home: https://affective-meld.github.io

A row: audio.path dia874_utt7.flac, text "Do I Rach?", emotion 5 (of anger, disgust, fear, joy, neutral, sadness,
surprise).

Quirks: emotions are integers, named by the file's own ClassLabel (copies of MELD differ in the order); curly quotes;
the row's only name is its audio file's.
"""

from include.sources.recipe import SourceRecipe, emotion, text

RECIPE = SourceRecipe(
    name="meld",
    title="MELD",
    repository="garam-icecream/MELD",
    key="audio.path",
    fields={"text": text("text"), "emotion": emotion("emotion")},
    licence="GPL-3.0",
    redistributable=False,
    url="https://affective-meld.github.io",
    schedule="30 3 * * 0",
)
