"""Words that name an emotion or a gender in a description."""

from __future__ import annotations

_EMOTIONS = {
    "angry": "angry angrily anger furious mad irritated annoyed frustrated frustration outraged enraged hostile "
    "aggressive exasperated",
    "happy": "happy happily happiness joyful joy joyous cheerful cheerfully excited excitement delighted pleased glad "
    "elated enthusiastic upbeat amused thrilled",
    "sad": "sad sadly sadness unhappy sorrowful sorrow upset gloomy depressed melancholy melancholic heartbroken "
    "disappointed grief tearful dejected somber sombre",
    "surprise": "surprise surprised surprisingly astonished amazed shocked startled stunned",
    "neutral": "neutral calm calmly composed indifferent monotone unemotional casual casually",
    "fear": "fear fearful fearfully afraid scared frightened terrified anxious anxiously worried nervous nervously "
    "panicked alarmed",
    "disgust": "disgust disgusted disgustedly revolted repulsed appalled",
}
EMOTION_WORDS = {word: emotion for emotion, words in _EMOTIONS.items() for word in words.split()}
"""Word -> canonical emotion that it names."""

NEGATIONS = frozenset(("not", "no", "never", "without", "isn't", "hardly"))
"""Words before which an emotion is denied."""

MALE_WORDS = frozenset(("man", "men", "male", "boy", "guy", "gentleman"))
FEMALE_WORDS = frozenset(("woman", "women", "female", "girl", "lady"))
