"""Chat templates: read from either of a model's files, and rendered with a clock that stands still."""

import json
from datetime import date
from pathlib import Path

import jinja2
import pytest

from include.generation.chat_template import freeze_date, template_in


def render(template: str, **values: object) -> str:
    """Render as transformers does: with these two options, and a clock of its own among the globals."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["strftime_now"] = lambda form: f"not frozen: {form}"
    return environment.from_string(template).render(**values)


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("%d %B %Y", "05 March 2026"),
        ("%d %b %Y", "05 Mar 2026"),
        ("%Y-%m-%d", "2026-03-05"),
        ("%A, %B %-d", "Thursday, March 5"),
        ("%Y-%m-%dT%H:%M:%S", "2026-03-05T00:00:00"),
        ("today", "today"),
    ],
)
def test_the_date_is_frozen_in_every_form(form: str, printed: str) -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('" + form + "') }}{% endif %}"
    assert render(freeze_date(template, date(2026, 3, 5))) == printed


def test_nothing_else_of_a_template_changes() -> None:
    for start in ("\n  {% if a %}\n  x\n  {% endif %}\nend", "  {{ a }}\n", "{# note #}\n{{ a }}"):
        dated = start + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
        assert render(freeze_date(dated, date(2026, 3, 5)), a=1) == render(dated, a=1)
    assert freeze_date("{{ messages }}", date(2026, 3, 5)) == "{{ messages }}"


def test_a_date_inside_a_macro_is_frozen_too() -> None:
    template = "{% macro today() %}{{ strftime_now('%Y') }}{% endmacro %}{{ today() }}"
    assert render(freeze_date(template, date(1999, 1, 1))) == "1999"


def test_a_template_is_found_in_either_file(tmp_path: Path) -> None:
    jinja, config = tmp_path / "chat_template.jinja", tmp_path / "tokenizer_config.json"
    jinja.write_text("of its own")
    config.write_text(json.dumps({"chat_template": "in the config"}))
    assert template_in(jinja, config) == "of its own"
    assert template_in(None, config) == "in the config"
    config.write_text(
        json.dumps({"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]})
    )
    assert template_in(None, config) == "d"
    config.write_text("{}")
    assert template_in(None, config) is None
    assert template_in(None, None) is None
