"""What identifies the generator: the part of every `mode_hash` that is not the mode's own prompt.

Nothing here imports torch or transformers, so a run can be planned without a GPU in reach.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from include.generation.chat_template import template_in
from include.local.model import ensure_small_model
from include.settings import EMBEDDED_MODEL, Settings

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")


def model_hash_inputs(settings: Settings) -> dict[str, object]:
    """Return everything that identifies what generates.

    Two runs with equal values write from the same distribution, so their responses may stand beside each other.
    The engine, the device and the batch size are left out: they change the order of float additions, not the model.
    What a server does otherwise than our own engine is in: a date of its own, a penalty that covers the prompt too.

    Args:
        settings: Model, revision, dtype, frozen date and sampling; of the engine, whether it is a server.

    Returns:
        `model`, `revision` (a Hub branch or tag resolved to its commit), `chat_template_sha256` (hex), `frozen_date`,
        `dtype`, `sampling` (a dict); JSON values only. A server that renders the prompt (`server_chat`) has
        `date: "server"` in place of `frozen_date`; one that penalises repetition has `penalised: "prompt and answer"`.

    Raises:
        ValueError: If the model or its chat template cannot be had, naming it and what to do.
    """
    model, revision, template_hash = _model_identity(settings)
    inputs: dict[str, object] = {
        "model": model,
        "revision": revision,
        "chat_template_sha256": template_hash,
        "frozen_date": settings.frozen_date,
        "dtype": settings.dtype,
        "sampling": settings.sampling.model_dump(),
    }
    if settings.engine == "openai":
        if settings.server_chat:
            del inputs["frozen_date"]
            inputs["date"] = "server"
        if settings.sampling.repetition_penalty != 1:
            inputs["penalised"] = "prompt and answer"  # our own sampler looks at the answer alone
    return inputs


def pinned(settings: Settings) -> Settings:
    """Return the settings with the model's revision resolved to its commit, so that it cannot move any more."""
    if settings.engine == "fake" or local_model_dir(settings) is not None:
        return settings
    commit = resolve_revision(settings)
    if commit != settings.model_revision:
        log.warning(
            "%s is taken at %s, which is %s now; when it moves, all responses are pending again. SIFT_MODEL_REVISION "
            "pins it",
            *(settings.model_name, settings.model_revision, commit),
        )
    return settings.model_copy(update={"model_revision": commit})


def local_model_dir(settings: Settings) -> Path | None:
    """Return the folder of a model that lies on this machine, or None for one on the Hub.

    Args:
        settings: `model_name` is the embedded model's name, a folder, or a Hub repository.

    Raises:
        ValueError: If the embedded model is not installed.
    """
    if settings.model_name == EMBEDDED_MODEL:
        return ensure_small_model(settings.models_dir)
    folder = Path(settings.model_name)
    return folder if folder.is_dir() else None


def unavailable(settings: Settings, error: object) -> ValueError:
    """Say that a model on the Hub cannot be had, and what to do about it."""
    return ValueError(
        f"Model {settings.model_name!r} at revision {settings.model_revision!r} cannot be had: {error}. "
        "Check the network and the name; a gated or private model needs a token (HF_TOKEN); "
        "SIFT_MODEL_NAME and SIFT_MODEL_REVISION name another model, or a folder that holds one."
    )


def resolve_revision(settings: Settings) -> str:
    """Return the commit that the model's revision stands for on the Hub.

    Args:
        settings: `model_name` is a Hub repository; `model_revision` a branch, a tag or a commit.

    Returns:
        40 hex digits; a commit is returned as it is, without asking the Hub.

    Raises:
        ValueError: If the Hub cannot be reached or knows no such model or revision.
    """
    if _COMMIT.fullmatch(settings.model_revision):
        return settings.model_revision
    try:
        commit = HfApi().model_info(settings.model_name, revision=settings.model_revision).sha
    except Exception as error:  # the Hub client lets its HTTP library's errors through, which have no common base
        raise unavailable(settings, error) from error
    if commit is None:
        raise unavailable(settings, "the Hub names no commit for it")
    return commit


def _model_identity(settings: Settings) -> tuple[str, str, str]:
    """Model, revision and the chat template's hash."""
    if settings.engine == "fake":
        return "fake", "fake", "fake"
    folder = local_model_dir(settings)
    if folder is not None:
        revision = settings.model_revision
        files = [path if (path := folder / name).is_file() else None for name in _TEMPLATE_FILES]
    else:
        revision = resolve_revision(settings)
        files = [_hub_file(settings, name, revision) for name in _TEMPLATE_FILES]
    template = template_in(*files)
    if template is None:
        raise ValueError(f"Model {settings.model_name!r} has no chat template; SIFT_MODEL_NAME must be a chat model")
    return settings.model_name, revision, hashlib.sha256(template.encode()).hexdigest()


def _hub_file(settings: Settings, name: str, commit: str) -> Path | None:
    """Fetch one file of a model at a commit; None if it has no such file."""
    try:
        return Path(hf_hub_download(settings.model_name, name, revision=commit))
    except EntryNotFoundError as error:
        if isinstance(error, FileNotFoundError):  # not in the cache, and the Hub out of reach
            raise unavailable(settings, error) from error
        return None
    except Exception as error:  # as above
        raise unavailable(settings, error) from error
