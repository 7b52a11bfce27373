"""Scaffold a source: `./sift new-source NAME --repository ORG/NAME` writes its recipe and its fixture.

The corpus is read: its columns are matched by name with what a recipe can fill, its rows are counted, and a few of them
become the fixture, with the samples that the recipe makes of them. What was guessed is for its author to check.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from include.settings import PROJECT_ROOT, get_settings
from include.sources import NOT_SOURCES, RECIPES, recipe
from include.sources.corpus import resolve_corpus
from include.sources.reader import audio_columns, count_rows, read_columns, read_metadata
from include.sources.recipe import CANONICAL_COLUMNS, Field, SourceRecipe

GUESSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("text", ("transcription", "transcript", "text", "sentence", "normalized_text")),
    "emotion": ("emotion", ("major_emotion", "emotion", "emotion_label")),
    "gender": ("gender", ("gender", "sex")),
    "age": ("age", ("age", "age_group")),
    "pace": ("speaking_rate", ("speaking_rate",)),
    "volume": ("relative_db", ("relative_db",)),
    "accent": ("accent", ("accent", "accents", "dialect")),
    "speaker": ("verbatim", ("speaker_id", "speaker", "spk_id", "client_id")),
    "duration": ("seconds", ("duration",)),
}
"""Canonical column -> the function of include.sources.recipe that fills it, and columns it may be made from."""
KEYS = ("file", "path", "audio_id", "id", "ID", "utt_id", "filename")
FIXTURE_ROWS = 4


def scaffold(name: str, repository: str, config: str, hub: str) -> tuple[str, dict[str, Any]]:
    """Write a recipe's source text and its fixture.

    Raises:
        ValueError: If the name is taken or no name, or the corpus has no transcript.
        SourceError: If the corpus cannot be read.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} cannot be a source's name: lower-case letters, digits and _, a letter first")
    if name in RECIPES or name in NOT_SOURCES:
        raise ValueError(f"there is an include/sources/{name}.py already: choose another name")
    nothing = {"text": Field(("text",), "text", "", lambda values: values)}
    draft = SourceRecipe(
        name=name, title=name, repository=repository, config=config, key="id", fields=nothing,
        licence="unknown", redistributable=False, url=f"https://huggingface.co/datasets/{repository}",
    )  # fmt: skip
    corpus = resolve_corpus(draft, hub)
    columns = read_columns(corpus)
    clips = audio_columns(columns)
    if not clips:
        raise ValueError(f"{repository} has no audio column (struct of bytes and path); it has {columns.names}")
    made = {
        canonical: (function, next(column for column in candidates if column in columns.names))
        for canonical, (function, candidates) in GUESSES.items()
        if set(candidates) & set(columns.names)
    }
    if "text" not in made:
        raise ValueError(f"{repository} has no column that looks like a transcript; it has {columns.names}")
    key = next((column for column in KEYS if column in columns.names), f"{clips[0]}.path")
    fields = {canonical: getattr(recipe, function)(column) for canonical, (function, column) in made.items()}
    ready = replace(draft, key=key, fields=fields, audio_column=clips[0])
    table = next(read_metadata(corpus, corpus.files[0], ready)).slice(0, FIXTURE_ROWS)
    staged = ready.stage(table)
    rows = table.select([column for column in table.column_names if column.split(".")[0] in columns.names]).to_pylist()
    samples = [
        {"sample_id": row["sample_id"], **{c: row[c] for c in CANONICAL_COLUMNS if row[c] is not None}}
        if row["reject_reason"] is None
        else {"sample_id": row["sample_id"], "reject_reason": row["reject_reason"]}
        for row in staged.table.to_pylist()
    ]
    fixture = {"rows": rows, "samples": samples, "unmapped": staged.unmapped, "left_out": staged.left_out}
    shown = ", ".join(f"{column} {value!r}" for column, value in rows[0].items() if not isinstance(value, dict))
    return _module(ready, made, count_rows(corpus), shown), fixture


def _module(draft: SourceRecipe, made: dict[str, tuple[str, str]], rows: int, row: str) -> str:
    fields = "".join(
        f'        "{canonical}": {function}("{column}"),\n' for canonical, (function, column) in made.items()
    )
    optional = f'    config="{draft.config}",\n' if draft.config != "default" else ""
    optional += f"    audio_column={json.dumps(draft.audio_column)},\n" if draft.audio_column != "audio" else ""
    imports = ", ".join(["SourceRecipe", *sorted({function for function, _ in made.values()})])
    example = textwrap.fill(f"A row: {row}.", 118).replace("\\", "\\\\").replace('"""', "'''")
    return f'''"""{draft.title}: say in a line what it is.

{rows:,} rows. Say who speaks, how, and in which language.

- Hub: {draft.repository}, config {draft.config}, split train, {rows:,} rows
- Licence: unknown; find out before its audio is published
- Home: {draft.url}

{example}

Quirks: none known yet. Run ./sift trigger ingest_{draft.name} and read the report of unmapped labels.
"""

from include.sources.recipe import {imports}

RECIPE = SourceRecipe(
    name="{draft.name}",
    title="{draft.title}",
    repository="{draft.repository}",
{optional}    key={json.dumps(draft.key)},
    fields={{
{fields}    }},
    licence="unknown",
    redistributable=False,
    url="{draft.url}",
    citation="",
    expected_rows={rows:_},
)
'''


def main(
    name: Annotated[str, typer.Argument(help="As it will be called everywhere: lower case, e.g. my_corpus")],
    repository: Annotated[str, typer.Option(help="Dataset repository, organisation/name")],
    config: Annotated[str, typer.Option(help="Its configuration")] = "default",
    hub: Annotated[str | None, typer.Option(help="Folder in the Hub's layout; else where SIFT_HUB points")] = None,
) -> None:
    """Write include/sources/NAME.py and its fixture."""
    try:
        text, fixture = scaffold(name, repository, config, str(Path(hub).absolute()) if hub else get_settings().hub)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"sift: {error}") from None
    module = PROJECT_ROOT / "include" / "sources" / f"{name}.py"
    expected = PROJECT_ROOT / "tests" / "include" / "sources" / "fixtures" / f"{name}.json"
    module.write_text(text, encoding="utf-8")
    lines = [
        f'  "{part}": [\n' + ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value) + "\n  ]"
        if isinstance(value, list)
        else f'  "{part}": {json.dumps(value, ensure_ascii=False)}'
        for part, value in fixture.items()
    ]
    expected.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{module.relative_to(PROJECT_ROOT)}: check the card, the licence, the key and the fields")
    print(
        f"{expected.relative_to(PROJECT_ROOT)}: check the samples; put sentences of your own in place of the corpus's"
    )
    print(f"Airflow finds ingest_{name} by itself. Then: ./sift docs && ./sift test tests/include/sources")


if __name__ == "__main__":
    typer.run(main)
