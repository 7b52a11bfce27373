"""Chat templates: where a model keeps its own, and how the date that it prints is frozen."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

# Spelled out because strftime would follow the process's locale.
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def template_in(chat_template: Path | None, tokenizer_config: Path | None) -> str | None:
    """Read a model's default chat template from its files.

    Args:
        chat_template: `chat_template.jinja`, where newer models keep it; None if there is none.
        tokenizer_config: `tokenizer_config.json`, where older models keep it; None if there is none.

    Returns:
        The template's text, or None if neither file has one.
    """
    if chat_template is not None:
        return chat_template.read_text(encoding="utf-8")
    if tokenizer_config is None:
        return None
    template = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):  # several templates, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if template is None else str(template)


def freeze_date(template: str, day: date) -> str:
    """Make a chat template print one fixed date instead of today's.

    SmolLM3's template prints `strftime_now("%d %B %Y")`, so every prompt would change at midnight. transformers lets
    no function through to a template (it hands on a text in its place), so the frozen clock is a macro in front of
    the template, which hides the library's function of the same name.

    Args:
        template: A chat template that transformers can render.
        day: The date to print; its time is midnight.

    Returns:
        The template with the macro; equal to the original where `strftime_now` is not used.
    """
    if "strftime_now" not in template:
        return template
    month, weekday = _MONTHS[day.month - 1], _WEEKDAYS[day.weekday()]
    directives = {
        "%Y": f"{day:%Y}",
        "%y": f"{day:%y}",
        "%m": f"{day:%m}",
        "%B": month,
        "%b": month[:3],
        "%d": f"{day:%d}",
        "%-d": str(day.day),
        "%j": f"{day:%j}",
        "%A": weekday,
        "%a": weekday[:3],
        "%H": "00",
        "%I": "12",
        "%M": "00",
        "%S": "00",
        "%p": "AM",
    }
    filters = "".join(f"|replace({directive!r}, {value!r})" for directive, value in directives.items())
    # The line end is eaten by trim_blocks, so the template still starts on a line of its own.
    return "{% macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}\n" + template
