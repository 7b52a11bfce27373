"""MELD: the Multimodal EmotionLines Dataset, utterances from the TV series Friends.

13,708 utterances of 1,433 dialogues, median 2.5 s, seven emotions: neutral 6,436, joy 2,308, surprise 1,636, anger
1,607, sadness 1,002, disgust 361, fear 358. English.

- Hub: garam-icecream/MELD, config default, one split train, 13.7 k rows
- Licence: GPL-3.0 for the annotations; the audio is from a TV show and not cleared for redistribution
- Home: https://affective-meld.github.io

A row: audio.path dia874_utt7.flac, text "Do I Rach?", emotion 5 (of anger, disgust, fear, joy, neutral, sadness,
surprise).

Quirks: emotions are integers, and copies of MELD number them in different orders. The file's own ClassLabel names
count; without them the alphabetical order is tried. Either way `neutral` must come out as the largest class, or
nothing is merged. Curly quotes; clips from 0.06 s to 305 s; the row's only name is its audio file's. The official
train, dev and test parts are one split here, so its test clips are among them.
"""

from include.sources.recipe import SourceRecipe, emotion, text

ALPHABETICAL = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")

RECIPE = SourceRecipe(
    name="meld",
    title="MELD",
    repository="garam-icecream/MELD",
    key="audio.path",
    fields={"text": text("text"), "emotion": emotion("emotion", class_names=ALPHABETICAL)},
    licence="GPL-3.0",
    redistributable=False,
    url="https://affective-meld.github.io",
    citation=(
        "S. Poria, D. Hazarika, N. Majumder, G. Naik, E. Cambria and R. Mihalcea, MELD: A Multimodal Multi-Party "
        "Dataset for Emotion Recognition in Conversations, ACL 2019, doi:10.18653/v1/P19-1050"
    ),
    expected_rows=13_708,
    largest_class={"emotion": "neutral"},
    schedule="0 4 * * 0",
)
