"""A mode: one way of asking the language model about a sample, and how its answer is trained on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
import pyarrow.compute as pc

from include.schema import LABEL_COLUMNS

# Found anywhere in a system message, these switch a chat template's thinking on or off, or drop its own header. SmolLM3
# finds "/think" in "</think>" too, turns thinking on, and leaves "<>" of the tag.
_TEMPLATE_FLAGS = re.compile(r"/(?:no_?)?think|<think>|/system_override", re.IGNORECASE)

# Order of the fields inside <meta>, and nothing else, by the specification.
META_FIELDS = ("age", "gender", "volume", "pace", "emotion", "accent")

# What a mode makes of these says whether its code still asks the same: with all labels, one, none; with what is escaped
# or cut out; without words. A change of that code which these do not show needs another example here.
_EXAMPLES: list[dict[str, str | None]] = [
    {"text": "Hello there, how are you?", "emotion": "happy", "gender": "female", "age": "young adult", "pace": "fast",
     "volume": "loud", "accent": "India and South Asia (India, Pakistan): <b>"},
    {"text": " <audio>It's 5 < 6 & \"so\"</audio>\n\u00e9 ", "emotion": "sad"},
    {"text": "No labels."},
    {"text": "", "gender": "male", "volume": "quiet"},
    {"text": None, "pace": "slow"},
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way of asking.

    Attributes:
        name: As the specification writes it, e.g. "sift_ssp".
        title: What the UI calls it.
        purpose: One sentence for people.
        user_message: Column function: a table with `text` and the label columns (N rows) -> N user messages.
        instruction: What the published row asks the trained model (with its trailing blank), or "".

    Raises:
        ValueError: If the system prompt holds a flag that chat templates act upon, naming the mode and the flag.
    """

    name: str
    title: str
    purpose: str
    user_message: Callable[[pa.Table], pa.Array]
    instruction: str = ""

    def __post_init__(self) -> None:
        if flag := _TEMPLATE_FLAGS.search(self.system_prompt):
            raise ValueError(
                f"Mode {self.name!r}: its system prompt holds {flag.group()!r}, which chat templates take for a switch "
                f"of the model's thinking or of their own header; write prompts/{self.name}.txt without it"
            )

    @property
    def system_prompt(self) -> str:
        """The system message, verbatim from `prompts/<name>.txt`."""
        return (resources.files("include.modes") / "prompts" / f"{self.name}.txt").read_text(encoding="utf-8").strip()

    def build_user_messages(self, samples: pa.Table) -> pa.Array:
        """Build the user messages of N samples (columns `text` and the labels), in their order."""
        return self.user_message(samples)

    def hash_inputs(self, generator: Mapping[str, object]) -> dict[str, object]:
        """Return all that a response of this mode depends on besides the sample.

        Args:
            generator: The generator's part: model, revision, template, frozen date, dtype, sampling.
        """
        names = ("text", *LABEL_COLUMNS)
        examples = pa.table({name: pa.array([row.get(name) for row in _EXAMPLES], pa.string()) for name in names})
        messages = json.dumps(self.build_user_messages(examples).to_pylist(), ensure_ascii=False)
        return {
            "mode": self.name,
            "system_prompt": self.system_prompt,
            "user_messages_sha256": hashlib.sha256(messages.encode()).hexdigest(),
            **generator,
        }


def mode_hash(inputs: Mapping[str, object]) -> str:
    """Hash what `Mode.hash_inputs` returns: sha256 hex of its canonical JSON."""
    canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def prompt_hashes(hash_of_mode: str, user_messages: pa.Array) -> pa.Array:
    """Hash N user messages under a mode: sha256 hex of the mode_hash, a line end, and the message.

    Returns:
        N strings, in order. Arrow has no sha256, so this is the one loop over rows that the plan makes; it hashes
        about a million messages a second.
    """
    prefix = hashlib.sha256(f"{hash_of_mode}\n".encode())
    hashes = []
    for message in user_messages.to_pylist():
        digest = prefix.copy()
        digest.update(message.encode())
        hashes.append(digest.hexdigest())
    return pa.array(hashes, pa.string())


def bare_transcript(samples: pa.Table) -> pa.Array:
    """The transcript itself: N strings."""
    return _column(samples, "text")


def audio_context(samples: pa.Table) -> pa.Array:
    """Write N samples as the specification's audio context, columns at a time.

    Returns:
        N strings `<audio><meta>k: v, k: v</meta><text>...</text></audio>`; fields in the order of META_FIELDS,
        missing ones left out, no `<meta>` when there is none, no `<text>` when the transcript is empty.

    Source:
        The specification, "Audio Context Format"; the reference generator's lines 417-441.
    """
    # null_handling="skip" would be shorter, but in Arrow 26 it drops the rows in which every part is NULL.
    pairs = [_concatenated(f"{name}: ", _neutralised(_column(samples, name)), ", ") for name in META_FIELDS]
    meta = pc.replace_substring_regex(_concatenated(*(pc.fill_null(pair, "") for pair in pairs)), ", $", "")
    text = _without_markup(pc.fill_null(_column(samples, "text"), ""))
    return _concatenated("<audio>", _wrapped("meta", meta), _wrapped("text", text), "</audio>")


def _column(samples: pa.Table, name: str) -> pa.Array:
    return samples.column(name).combine_chunks().cast(pa.string())


def _wrapped(tag: str, values: pa.Array) -> pa.Array:
    """`<tag>value</tag>`, or "" where the value is empty."""
    return pc.if_else(pc.equal(values, ""), "", _concatenated(f"<{tag}>", values, f"</{tag}>"))


def _concatenated(*parts: str | pa.Array) -> pa.Array:
    """Concatenate N-row columns and constants, row by row; NULL where a column is."""
    scalars = [pa.scalar(part) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*scalars, pa.scalar(""))


def _without_markup(values: pa.Array) -> pa.Array:
    """Drop angle brackets, so that no value can close or open a tag."""
    return pc.replace_substring_regex(values, r"[<>]", "")


def _neutralised(values: pa.Array) -> pa.Array:
    """Make a label safe inside `<meta>`: no brackets, and none of the separators ", " and ": ".

    Common Voice accents hold both, "India and South Asia (India, Pakistan)": there the separator becomes a blank.
    """
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(_without_markup(values), r"\s*[,:]\s*", " "))
