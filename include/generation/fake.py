"""An engine without a model, for tests and dry runs: the same prompt and seed always give the same text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence

from include.generation.device import device_candidates
from include.schema import FinishReason, Prompt, Response
from include.settings import Settings

# What becomes of a good answer, by fault.
_SPOILED: dict[str, Callable[[str, Prompt], str]] = {
    "empty": lambda text, prompt: "",
    "think": lambda text, prompt: f"<think>The user says something. {text}",  # never closed
    "tag": lambda text, prompt: f"{text} <audio><|im_start|>",
    "unprintable": lambda text, prompt: f"{text}\x00\ufffd",
    "role_echo": lambda text, prompt: f"{text}\nUser: And what then?",
    "refused": lambda text, prompt: "",  # as by a server that will not read the prompt
    "length": lambda text, prompt: text[: len(text) // 2],  # cut by the token limit
    "refusal": lambda text, prompt: "I'm sorry, but as an AI I can't hear audio.",
    "copied_prompt": lambda text, prompt: f"{text} {prompt.system_prompt.partition('Example:')[0]}",
    "copied_example": lambda text, prompt: "Sounds like an angry man saying 'leave me alone' in a harsh voice.",
    "opening": lambda text, prompt: f"I hear this: {text}",  # not "Sounds like"
    "sentences": lambda text, prompt: f"{text} Then there is silence.",  # one too many for a description
    "duplicate": lambda text, prompt: "Sounds like you have had quite a day.",  # the same for every prompt
}
# Why those ended that the model did not end.
_ENDS: dict[str | None, FinishReason] = {"length": "length", "refused": "refused"}
# What happens to the batch that the row is in.
_EVENTS = ("crash", "oom", "hang", "slow")
FAULTS = (*_SPOILED, *_EVENTS)
SLOW_S = 1.0

_WARMTH = (
    "I'm so glad you told me.",
    "That sounds like a lot to carry.",
    "I hear you.",
    "Thank you for sharing that with me.",
    "Oh, I know that feeling.",
)
_OFFERS = (
    "I'm right here with you.",
    "Tell me more whenever you like.",
    "Let's take it one step at a time.",
    "How are you holding up?",
    "We will find a way through it.",
)
_VOICES = ("soft", "clear", "harsh", "steady", "bright")

_META = re.compile(r"(gender|emotion): ([^,<]+)")
_TEXT = re.compile(r"<text>(.*)</text>", re.DOTALL)


class FakeEngine:
    """Writes plausible answers at once, and the faults it is told to.

    Faults (`settings.fake_faults`, "empty:0.1,crash:0.01") are chosen by the row's seed, so a retry, which has
    another seed, may be fine. Most spoil the answer, so that a rule rejects it (`_SPOILED` says how). Others are for
    the batch: crash and oom raise, hang never ends, slow takes SLOW_S seconds.

    Attributes:
        name: "fake".
        device: "cpu", or the GPU that its task has leased (it is left alone); known after `load()`.
    """

    name = "fake"

    def __init__(self, settings: Settings, seconds_per_batch: float = 0) -> None:
        """Read the faults.

        Args:
            settings: `fake_faults`, `fake_log` and `batch_size` count.
            seconds_per_batch: How long a batch pretends to take.

        Raises:
            ValueError: If `fake_faults` names an unknown fault or its shares are not in [0, 1] altogether.
        """
        self.device = "cpu"
        self.batch_size = settings.batch_size
        self.seconds_per_batch = seconds_per_batch
        self.log_file = settings.fake_log
        self.faults = parse_faults(settings.fake_faults)

    def load(self) -> None:
        """Nothing to load; what was leased is what this process sees."""
        if leased := device_candidates():
            self.device = f"GPU {', '.join(leased)}"

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        """Answer P prompts in batches of `settings.batch_size`, in the order given.

        Raises:
            RuntimeError: In place of a batch with a row that was dealt a crash, or out of memory ("oom").
        """
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            if self.log_file:
                _log_batch(self.log_file, batch, self.device)
            if self.seconds_per_batch:
                time.sleep(self.seconds_per_batch)
            yield [self._answer(prompt) for prompt in batch]

    def _answer(self, prompt: Prompt) -> Response:
        fault = self._fault(prompt.seed)
        match fault:
            case "crash":
                raise RuntimeError(f"fake engine: crash dealt to {prompt.sample_id} ({prompt.mode})")
            case "oom":  # as torch says it
                raise RuntimeError(f"fake engine: CUDA out of memory dealt to {prompt.sample_id} ({prompt.mode})")
            case "hang":
                while True:
                    time.sleep(60)
            case "slow":
                time.sleep(SLOW_S)
        text = plausible_text(prompt)
        if fault in _SPOILED:
            text = _SPOILED[fault](text, prompt)
        finish_reason = _ENDS.get(fault, "stop")
        return Response(
            prompt=prompt,
            text=text,
            finish_reason=finish_reason,
            prompt_tokens=len(f"{prompt.system_prompt} {prompt.user_message}".split()),
            response_tokens=len(text.split()) + (finish_reason == "stop"),
        )

    def _fault(self, seed: int) -> str | None:
        """The fault dealt to a seed, or None."""
        at = _fraction(f"fault:{seed}")
        for fault, share in self.faults.items():
            if at < share:
                return fault
            at -= share
        return None


def parse_faults(setting: str) -> dict[str, float]:
    """Read "fault:share,...".

    Args:
        setting: As in SIFT_FAKE_FAULTS; "" for none.

    Returns:
        Share of the rows by fault, in the order given.

    Raises:
        ValueError: Naming an unknown fault, an entry without a share, or shares that do not fit in [0, 1].
    """
    faults: dict[str, float] = {}
    for entry in filter(None, map(str.strip, setting.split(","))):
        fault, _, share = entry.partition(":")
        if fault not in FAULTS:
            raise ValueError(f"SIFT_FAKE_FAULTS: unknown fault {fault!r}; known are {', '.join(FAULTS)}")
        try:
            faults[fault] = float(share)
        except ValueError:
            raise ValueError(f"SIFT_FAKE_FAULTS: {entry!r} is not 'fault:share'") from None
    if any(not 0 <= share <= 1 for share in faults.values()) or sum(faults.values()) > 1:
        raise ValueError(f"SIFT_FAKE_FAULTS: the shares of {setting!r} must lie in [0, 1] and add up to 1 at most")
    return faults


def _log_batch(path: str, batch: Sequence[Prompt], device: str) -> None:
    """Add a line about a batch that begins; in one write, so that neither others nor a kill can cut it."""
    rows = [[prompt.sample_id, prompt.mode, prompt.attempt] for prompt in batch]
    line = json.dumps({"pid": os.getpid(), "device": device, "rows": rows})
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def plausible_text(prompt: Prompt) -> str:
    """A text of the form that the mode asks for, chosen by (mode, user message, seed)."""
    key = f"{prompt.mode}:{prompt.user_message}:{prompt.seed}"
    if prompt.mode != "sit_ssp":
        return f"{_choice(_WARMTH, key + ':warmth')} {_choice(_OFFERS, key + ':offer')}"
    labels = dict(_META.findall(prompt.user_message))
    person = {"male": "man", "female": "woman"}.get(labels.get("gender", ""), "person")
    emotion = labels.get("emotion", "calm")
    said = _TEXT.search(prompt.user_message)
    article = "an" if emotion[0] in "aeiou" else "a"
    voice = _choice(_VOICES, key)
    return f'Sounds like {article} {emotion} {person} saying "{said[1] if said else ""}" in a {voice} voice.'


def _choice(options: Sequence[str], key: str) -> str:
    return options[int(_fraction(key) * len(options))]


def _fraction(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
