"""From a prompt to the exact text that a model reads; needs the model's tokenizer alone, neither weights nor torch."""

from __future__ import annotations

from datetime import date
from typing import Any

from include.generation.chat_template import freeze_date
from include.generation.identity import local_model_dir, resolve_revision, unavailable
from include.schema import Prompt
from include.settings import Settings


class PromptRenderer:
    """Renders prompts with a model's chat template, thinking off and the date frozen."""

    def __init__(self, tokenizer: Any, frozen_date: str) -> None:
        """Freeze the date in the tokenizer's chat template.

        Args:
            tokenizer: A transformers tokenizer with a chat template.
            frozen_date: The date to print, YYYY-MM-DD.
        """
        self._tokenizer = tokenizer
        self._chat_template = freeze_date(tokenizer.get_chat_template(), date.fromisoformat(frozen_date))

    def render(self, prompt: Prompt) -> str:
        """Render a prompt.

        Returns:
            The exact text that is tokenised, up to where the answer begins.
        """
        return str(
            self._tokenizer.apply_chat_template(
                messages_of(prompt),
                chat_template=self._chat_template,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
        )


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt as chat messages: the system's, unless it is empty, and the user's."""
    messages = [{"role": "user", "content": prompt.user_message}]
    if prompt.system_prompt:
        messages.insert(0, {"role": "system", "content": prompt.system_prompt})
    return messages


def model_source(settings: Settings) -> dict[str, Any]:
    """Return where `from_pretrained` finds the model: on this machine, or on the Hub at one commit.

    Raises:
        ValueError: If the Hub knows no such model, or the embedded model is not installed.
    """
    folder = local_model_dir(settings)
    if folder is not None:
        return {"pretrained_model_name_or_path": folder}
    return {"pretrained_model_name_or_path": settings.model_name, "revision": resolve_revision(settings)}


def load_tokenizer(settings: Settings) -> Any:
    """Load the model's tokenizer.

    Raises:
        ValueError: If it cannot be had, naming the model, its revision and what to do.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**model_source(settings), padding_side="left", trust_remote_code=False)
    except OSError as error:
        raise unavailable(settings, error) from error
