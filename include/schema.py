"""The records that travel through the pipeline, and the column list of a staged sample.

Imports nothing of ours: every other package speaks in these terms. Missing is None here and NULL in the warehouse;
only the published files write "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

# The closed vocabularies of the specification, in the specification's order.
EMOTIONS = ("angry", "happy", "sad", "surprise", "neutral", "fear", "disgust")
GENDERS = ("male", "female")
AGE_GROUPS = ("teenager", "young adult", "middle-age adult", "senior")
PACES = ("slow", "normal", "fast")
VOLUMES = ("quiet", "loud")

# Canonical label columns of a staged sample; each is one of the vocabularies above, or free text (accent), or NULL.
LABEL_COLUMNS = ("emotion", "gender", "age", "pace", "volume", "accent")

STAGED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("sample_id", pa.string()),  # "<source>/<row key>"
        ("split", pa.string()),  # the corpus's own split
        ("text", pa.string()),  # transcript: cleaned, stripped, lower-cased
        ("language", pa.string()),  # ISO 639-1
        ("emotion", pa.string()),
        ("gender", pa.string()),
        ("age", pa.string()),
        ("pace", pa.string()),
        ("volume", pa.string()),
        ("accent", pa.string()),
        ("speaker", pa.string()),
        ("duration", pa.float32()),  # seconds, where the corpus publishes it
        ("raw", pa.string()),  # JSON object: the labels as published
        ("answer", pa.string()),  # target of the answer task
        ("audio_file", pa.string()),  # path of the Parquet file in the corpus's repository
        ("audio_row_group", pa.int32()),
        ("audio_row", pa.int32()),  # row within the row group
        ("blob_id", pa.string()),  # content id of the Parquet file
    ]
)
"""One staged sample a row. Loads add `reject_reason`; the warehouse adds `revision`, `row_hash` and its timestamps."""


class BadInputError(ValueError):
    """Something that was given to us cannot work until it is changed; trying again as it is would not help.

    The message names the thing and what to do.
    """


@dataclass(frozen=True, slots=True)
class LlmServer:
    """A server that speaks the OpenAI API.

    Attributes:
        url: Base URL without credentials, e.g. "http://gpu-box:8000/v1".
        api_key: What the server asks for; None if nothing. Never shown.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HubAccount:
    """Who pushes to the Hugging Face Hub.

    Attributes:
        token: Access token that may write. Never shown.
        endpoint: Base URL of another Hub; None: the public one, or what HF_ENDPOINT says.
    """

    token: str = field(repr=False)
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of a deployment found.

    Attributes:
        check: What was looked at, in a word or two.
        state: "ok", "warn" (it works, but somebody should know), or "wrong".
        said: What was found, in one line, without secrets.
        mend: What to do about it; "" if nothing.
    """

    check: str
    state: Literal["ok", "warn", "wrong"]
    said: str
    mend: str = ""


Task = Literal["sift", "transcribe", "answer"]
FinishReason = Literal["stop", "sentences", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to an engine.

    Attributes:
        source: Corpus the sample belongs to.
        sample_id: "<source>/<row key>".
        mode: Name of the mode that asks.
        prompt_hash: sha256 of (mode_hash, user message), hex; the response is valid while it stays the same.
        system_prompt: System message, verbatim.
        user_message: User message, verbatim; the chat template is rendered by the engine.
        attempt: 1 for the first try, counted per prompt_hash.
        seed: 63-bit sampling seed, another one for every text of this row.
    """

    source: str
    sample_id: str
    mode: str
    prompt_hash: str
    system_prompt: str
    user_message: str
    attempt: int
    seed: int


@dataclass(frozen=True, slots=True)
class Response:
    """What an engine wrote for one prompt.

    Attributes:
        prompt: The prompt answered.
        text: The decoded answer up to its stop token, special tokens left visible so that leaks can be judged.
        finish_reason: "stop" (the model ended it), "sentences" (our sentence limit ended it), "length" (cut).
        prompt_tokens: Tokens of the rendered prompt.
        response_tokens: Tokens generated, the stop token included.
    """

    prompt: Prompt
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    response_tokens: int


@dataclass(slots=True)
class StepReport:
    """Counts of one step, small enough for XCom; rows stay in tables and files.

    Attributes:
        step: What ran, e.g. "load ravdess".
        read: Rows that came in.
        written: Rows that went on.
        skipped: Rows that can never work, by reason.
        failed: Rows that may work later, by reason.
        details: Anything else worth showing (JSON values only).
    """

    step: str
    read: int = 0
    written: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    details: dict[str, object] = field(default_factory=dict)

    def check(self) -> StepReport:
        """Return self if every row is accounted for.

        Raises:
            ValueError: If read != written + skipped + failed.
        """
        accounted = self.written + sum(self.skipped.values()) + sum(self.failed.values())
        if self.read != accounted:
            raise ValueError(f"{self.step}: read {self.read} rows but accounted for {accounted}: {self}")
        return self


def merge_counts(*counts: Mapping[str, int]) -> dict[str, int]:
    """Add up counts by key, e.g. the `skipped` of several reports."""
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return total
