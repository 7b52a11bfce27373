"""What every engine is: text in, text out. Storage, retries and judging live outside (`runner.py`, `quality`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from include.schema import Prompt, Response


class Engine(Protocol):
    """Writes one response per prompt."""

    name: str
    device: str  # "cpu", or the accelerator's name; known after load()

    def load(self) -> None:
        """Load the model. Heavy libraries (torch, transformers) are imported here and nowhere else.

        Raises:
            ValueError: If the model is not there, naming it and what to do.
        """

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[Response]]:
        """Answer every prompt once.

        Args:
            prompts: P prompts, in any order.

        Yields:
            Lists of finished responses, as batches end; P responses in all, in no fixed order. The caller commits
            each list before it asks for the next one.
        """
