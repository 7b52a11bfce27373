"""Make `samples/`: three small corpora of our own, in the Hub's layout, for the demo and the tests.

Every sentence below was written for this repository and is spoken by espeak-ng, so nothing here belongs to a corpus;
only the layout, the column types and the spellings of the labels follow the Hub. The committed files were made with
espeak-ng 1.51 and libsndfile 1.2.2; the same versions of these and of the packages give the same bytes again.

    apt-get install espeak-ng
    python tools/make_samples.py
"""

import hashlib
import io
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf
import typer
from datasets import Audio, ClassLabel, DatasetInfo, Features, SplitDict, SplitInfo, Value
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData


class Speaker(NamedTuple):
    """A synthetic speaker: an espeak-ng voice, its pitch (0..99), and what Common Voice would publish of it."""

    voice: str
    pitch: int
    age: str
    gender: str
    accent: str


class Clip(NamedTuple):
    """One utterance: who (1-based in CAST), words per minute, a key of LEVELS, the transcript, the corpus' labels."""

    speaker: int
    wpm: int
    level: str
    text: str
    emotion: str = ""
    nuance: str = ""  # RAVDESS: intensity; MELD: sentiment


# Men and women alternate, as RAVDESS numbers its actors: odd is male. Common Voice joins two accents by a bare comma.
CAST = (
    Speaker("en-us+m3", 45, "twenties", "male_masculine", "United States English"),
    Speaker("en-us+f2", 60, "teens", "female_feminine", "United States English"),
    Speaker("en-gb+m7", 30, "sixties", "male_masculine", "England English"),
    Speaker("en-gb+f4", 50, "fourties", "female_feminine", "India and South Asia (India, Pakistan, Sri Lanka)"),
    Speaker(
        "en-029+m1", 40, "thirties", "male_masculine", "West Indies and Bermuda (Bahamas, Bermuda, Jamaica, Trinidad)"
    ),
    Speaker("en-gb-scotland+f3", 45, "fifties", "female_feminine", "Scottish English"),
    Speaker("en-gb-x-gbclan+m5", 50, "twenties", "", "England English,Lancashire mill town"),
    Speaker("en-us-nyc+f5", 55, "", "female_feminine", ""),
    Speaker("en-us+m6", 35, "fourties", "male_masculine", ""),
    Speaker("en-gb-x-rp+f1", 65, "", "", ""),
)

# Gain into a soft clipper, and the peak after it (full scale 1). espeak-ng's own crest factor is 15-20 dB: "quiet"
# keeps it, the others lower it, because RAVDESS' relative_db is minus the crest factor and not the loudness itself.
LEVELS = {"quiet": (0.01, 0.2), "plain": (1.8, 0.5), "loud": (8.0, 0.7)}

RAVDESS = (
    Clip(1, 130, "plain", "The bus to the harbour leaves at nine.", "neutral", "normal"),
    Clip(2, 120, "plain", "My sister keeps her bicycle in the hallway.", "neutral", "normal"),
    Clip(3, 80, "quiet", "Breathe slowly, there is no hurry.", "calm", "normal"),
    Clip(4, 80, "quiet", "The lake is so still this evening.", "calm", "strong"),
    Clip(5, 190, "loud", "We got the house, they said yes!", "happy", "strong"),
    Clip(6, 150, "plain", "Look, the first tomatoes are finally ripe.", "happy", "normal"),
    Clip(7, 80, "quiet", "His chair still faces the garden.", "sad", "normal"),
    Clip(10, 90, "quiet", "I packed her letters away last night.", "sad", "strong"),
    Clip(1, 190, "loud", "You took my diary and laughed about it!", "angry", "strong"),
    Clip(4, 120, "loud", "Stop borrowing my tools without asking.", "angry", "normal"),
    Clip(9, 110, "quiet", "Somebody is walking around upstairs.", "fearful", "normal"),
    Clip(2, 220, "loud", "Please don't switch off the light, please!", "fearful", "strong"),
    Clip(8, 130, "plain", "There is something furry growing in this soup.", "disgust", "strong"),
    Clip(3, 125, "plain", "Who left wet socks inside the oven?", "disgust", "normal"),
    Clip(6, 170, "plain", "Wait, you cycled here from the coast?", "surprised", "normal"),
    Clip(5, 200, "loud", "Nobody told me that the piano was a gift!", "surprised", "strong"),
)

COMMON_VOICE = (
    Clip(1, 150, "plain", "The old bridge was repaired with local stone."),
    Clip(1, 160, "plain", "Most of the seeds germinate within two weeks."),
    Clip(2, 180, "plain", "She teaches violin in a room above the bakery."),
    Clip(2, 170, "loud", "Rain is expected in the northern valleys tomorrow."),
    Clip(3, 125, "quiet", "The museum closes early on the first Monday."),
    Clip(3, 120, "quiet", "A narrow path follows the river to the mill."),
    Clip(4, 140, "plain", "He sold the boat and bought a small orchard."),
    Clip(4, 150, "plain", "The recipe calls for three cups of rye flour."),
    Clip(5, 140, "loud", "Several villages still share one fire engine."),
    Clip(5, 150, "plain", "Her second novel was translated into eleven languages."),
    Clip(6, 150, "plain", " "),  # a row that no recipe can use: the rejects report has something to count
    Clip(6, 130, "plain", "The ferry turned back because of the fog."),
    Clip(7, 170, "plain", "Fresh paint covered the names on the wall."),
    Clip(8, 150, "quiet", "Every lamp in the street went out at once."),
    Clip(9, 125, "plain", "They planted chestnut trees beside the new school."),
    Clip(10, 160, "plain", "The clockmaker kept his smallest screws in a teacup."),
    Clip(10, 190, "loud", "Our train was delayed by a flock of sheep."),
)

UTTERANCES_PER_DIALOGUE = 3  # the rows below are six dialogues
MELD = (
    Clip(1, 150, "plain", "I’ll leave the spare keys with Nadia.", "neutral", "neutral"),
    Clip(2, 190, "plain", "You’re moving in? Since when…", "surprise", "positive"),
    Clip(1, 190, "plain", "Since this morning, and I’m so happy about it!", "joy", "positive"),
    Clip(4, 190, "loud", "You said “back by noon”, and it’s midnight!", "anger", "negative"),
    Clip(3, 140, "plain", "The trams stopped running after the concert.", "neutral", "neutral"),
    Clip(4, 90, "quiet", "You could’ve called… I sat here alone.", "sadness", "negative"),
    Clip(6, 150, "plain", "Ugh, this milk smells like a swamp.", "disgust", "negative"),
    Clip(5, 140, "plain", "It’s dated the third of April.", "neutral", "neutral"),
    Clip(6, 150, "plain", "Then why did I just drink it… revolting!", "disgust", "negative"),
    Clip(8, 165, "quiet", "Did you hear that scratching behind the wall?", "fear", "negative"),
    Clip(7, 180, "quiet", "Don’t open it… I can’t look!", "fear", "negative"),
    Clip(8, 180, "plain", "It’s a kitten! Oh, hello, little one!", "joy", "positive"),
    Clip(9, 140, "plain", "The results are in the blue envelope.", "neutral", "neutral"),
    Clip(10, 180, "plain", "“First prize”? That can’t be right!", "surprise", "positive"),
    Clip(9, 200, "loud", "We did it, we actually won the cup!", "joy", "positive"),
    Clip(2, 180, "loud", "Nobody asked you to repaint my guitar!", "anger", "negative"),
    Clip(7, 140, "plain", "It’ll wash off with a little turpentine.", "neutral", "neutral"),
    Clip(2, 80, "quiet", "It was the last thing Dad gave me…", "sadness", "negative"),
)
RAVDESS_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")  # codes 01..08
MELD_EMOTIONS = ClassLabel(names=["anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"])
MELD_SENTIMENTS = ClassLabel(names=["negative", "neutral", "positive"])


class Sound(NamedTuple):
    """A spoken clip: the encoded file, IPA characters per second, rms (full scale 1), relative_db (dB)."""

    data: bytes
    speaking_rate: float
    rms: float
    relative_db: float


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Where a sample corpus lies and how its files are built.

    Attributes:
        shard: Path of a shard inside the repository, with a place for its number.
        rows_per_group: Parquet row-group size; small ones let the tests address row groups.
        extension: Of the clips: wav, mp3 or flac.
        sampling_rate: Of the clips, in Hz.
        build_row: (row number from 0, clip, its sound) -> values in the order of `features`.
        features: The columns; their Arrow schema carries the Hub's `huggingface` metadata.
    """

    repository: str
    config: str = "default"
    shard: str = "data/train-{:05}-of-00001.parquet"
    shards: int = 1
    rows_per_group: int | None = None
    extension: str
    sampling_rate: int = 16_000
    clips: tuple[Clip, ...]
    build_row: Callable[[int, Clip, Sound], tuple[Any, ...]]
    features: Features


def build_ravdess_row(index: int, clip: Clip, sound: Sound) -> tuple[Any, ...]:
    """Name files as RAVDESS does (03-01-emotion-intensity-statement-repetition-actor); pitch is not measured."""
    emotion, intensity = RAVDESS_EMOTIONS.index(clip.emotion) + 1, ("normal", "strong").index(clip.nuance) + 1
    file = f"03-01-{emotion:02}-{intensity:02}-{index + 1:02}-01-{clip.speaker:02}.wav"
    gender, measures = "male" if clip.speaker % 2 else "female", (sound.speaking_rate, math.nan, math.nan, *sound[2:])
    return file, {"bytes": sound.data, "path": file}, gender, clip.text, clip.emotion, clip.nuance, *measures


def build_common_voice_row(index: int, clip: Clip, sound: Sound) -> tuple[Any, ...]:
    """Missing values are "", as upstream; a client keeps its demographics from clip to clip."""
    client, path = CAST[clip.speaker - 1], f"common_voice_en_{index + 1}.mp3"
    client_id, votes = hashlib.sha512(f"sample speaker {clip.speaker}".encode()).hexdigest(), (2 + index % 3, index % 2)
    labels = (client.age, client.gender, client.accent, "en", "", "")
    return client_id, path, {"bytes": sound.data, "path": path}, clip.text, *votes, *labels


def build_meld_row(index: int, clip: Clip, sound: Sound) -> tuple[Any, ...]:
    """The only key upstream is the clip's path, which names dialogue and utterance."""
    path = "dia{}_utt{}.flac".format(*divmod(index, UTTERANCES_PER_DIALOGUE))
    labels = MELD_EMOTIONS.str2int(clip.emotion), MELD_SENTIMENTS.str2int(clip.nuance)
    return {"bytes": sound.data, "path": path}, clip.text, *labels


def columns(dtype: str, names: str) -> dict[str, Value]:
    """Columns of one plain type, from their names with spaces between."""
    return dict.fromkeys(names.split(), Value(dtype))


CORPORA = (
    Corpus(
        repository="AbstractTTS/RAVDESS",
        rows_per_group=6,
        extension="wav",
        clips=RAVDESS,
        build_row=build_ravdess_row,
        features=Features(
            columns("string", "file")
            | {"audio": Audio()}
            | columns("string", "gender transcription emotion intensity")
            | columns("float32", "speaking_rate pitch_mean pitch_std rms relative_db")
        ),
    ),
    Corpus(
        repository="fixie-ai/common_voice_17_0",
        config="en",
        shard="en/train-{:05}-of-00002.parquet",
        shards=2,
        rows_per_group=3,
        extension="mp3",
        sampling_rate=48_000,
        clips=COMMON_VOICE,
        build_row=build_common_voice_row,
        features=Features(
            columns("string", "client_id path")
            | {"audio": Audio(sampling_rate=48_000)}
            | columns("string", "sentence")
            | columns("int64", "up_votes down_votes")
            | columns("string", "age gender accent locale segment variant")
        ),
    ),
    Corpus(
        repository="garam-icecream/MELD",
        extension="flac",
        clips=MELD,
        build_row=build_meld_row,
        features=Features(
            {"audio": Audio(), "text": Value("string"), "emotion": MELD_EMOTIONS, "sentiment": MELD_SENTIMENTS}
        ),
    ),
)


def run_espeak(*arguments: str) -> bytes:
    """espeak-ng's standard output; fails if espeak-ng does."""
    return subprocess.run(["espeak-ng", *arguments], capture_output=True, check=True).stdout


def resample(wave: np.ndarray, source_hz: int, target_hz: int) -> np.ndarray:
    """Band-limited resampling through the spectrum; right for whole clips that begin and end in silence."""
    length = round(len(wave) * target_hz / source_hz)
    return np.fft.irfft(np.fft.rfft(wave), n=length) * (length / len(wave))


def speak(clip: Clip, extension: str, sampling_rate: int) -> Sound:
    """Speak a clip and measure it as the AbstractTTS corpora do.

    Args:
        clip: What to say and how; a blank transcript is spoken as "Um.".
        extension: wav, mp3 or flac.
        sampling_rate: Of the encoded clip, in Hz, mono.

    Returns:
        The encoded clip. speaking_rate counts IPA characters without spaces and stress marks over the clip's seconds;
        relative_db is 20 log10(rms / peak).

    Source:
        Both formulas fit the rows printed in the AbstractTTS cards and reports (an inference; they state none).
    """
    speaker, words = CAST[clip.speaker - 1], clip.text.strip() or "Um."
    manner = ("-v", speaker.voice, "-s", str(clip.wpm), "-p", str(speaker.pitch), "--", words)
    phones = [c for c in run_espeak("-q", "--ipa", *manner).decode() if not c.isspace() and c not in "ˈˌ"]
    spoken, spoken_hz = sf.read(io.BytesIO(run_espeak("--stdout", *manner)))
    wave = resample(spoken, spoken_hz, sampling_rate)
    drive, peak = LEVELS[clip.level]
    wave = peak * np.tanh(drive * wave / np.abs(wave).max()) / math.tanh(drive)
    rms, encoded = float(np.sqrt(np.mean(wave**2))), io.BytesIO()
    sf.write(encoded, wave, sampling_rate, format=extension)
    return Sound(encoded.getvalue(), len(phones) * sampling_rate / len(wave), rms, 20 * math.log10(rms / peak))


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write one corpus into a folder: shards of consecutive rows, then the card, which states their sizes."""
    sounds = [speak(clip, corpus.extension, corpus.sampling_rate) for clip in corpus.clips]
    rows = [corpus.build_row(index, *pair) for index, pair in enumerate(zip(corpus.clips, sounds, strict=True))]
    records = [dict(zip(corpus.features, row, strict=True)) for row in rows]
    table = pa.Table.from_pylist(records, schema=corpus.features.arrow_schema)
    rows_per_shard = math.ceil(len(rows) / corpus.shards)
    paths = [folder / corpus.shard.format(number) for number in range(corpus.shards)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        shard = table.slice(number * rows_per_shard, rows_per_shard)
        pq.write_table(shard, path, row_group_size=corpus.rows_per_group)
    card = build_card(corpus, table, download_size=sum(path.stat().st_size for path in paths))
    (folder / "README.md").write_text(card, encoding="utf-8")


def build_card(corpus: Corpus, table: pa.Table, download_size: int) -> str:
    """The dataset card: the YAML that `datasets.load_dataset` reads, and where the clips come from."""
    splits = SplitDict()
    splits["train"] = SplitInfo("train", table.nbytes, table.num_rows)
    sizes = {"download_size": download_size, "dataset_size": table.nbytes}
    info = DatasetInfo(config_name=corpus.config, features=corpus.features, splits=splits, **sizes)
    files = [{"split": "train", "path": corpus.shard.partition("{")[0] + "*"}]
    card = DatasetCardData(license="cc0-1.0", configs=[{"config_name": corpus.config, "data_files": files}])
    DatasetInfosDict({corpus.config: info}).to_dataset_card_data(card)
    return f"""---
{card.to_yaml()}
---

# {corpus.repository}: a synthetic sample

{table.num_rows} clips of our own in the layout of the Hub's `{corpus.repository}`: sentences written for this
repository, spoken by espeak-ng, with invented labels. Nothing is taken from the corpus. Licence: CC0-1.0.
Made by `tools/make_samples.py`.
"""


def main(out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("samples")) -> None:
    """Write the sample corpora with espeak-ng."""
    if shutil.which("espeak-ng") is None:
        typer.echo("espeak-ng is not installed; on Debian or Ubuntu: apt-get install espeak-ng", err=True)
        raise typer.Exit(1)
    for corpus in CORPORA:
        write_corpus(corpus, out / corpus.repository)
        typer.echo(f"{out / corpus.repository}: {len(corpus.clips)} clips")


if __name__ == "__main__":
    typer.run(main)
