"""Rules that hold for every file: who may import whom, and what is never called."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "sandbox": set(),
    "evals": {"sandbox"},
    "data_curation": {"evals", "sandbox"},
    "agpo": {"evals", "sandbox"},
}
FILES = [(package, path) for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
every_file = pytest.mark.parametrize(("package", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module


@pytest.mark.parametrize(
    ("package", "path"), FILES, ids=lambda x: str(x.relative_to(ROOT)) if isinstance(x, Path) else x
)
def test_arrows_point_one_way(package, path):
    used = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert used & set(MAY_IMPORT) <= MAY_IMPORT[package] | {package}


def test_no_file_imports_itself_by_way_of_others():
    """Imports inside functions count: they hide a circle and do not open it. What an `__init__` hands on does not."""
    names = {str(p.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): p for _, p in FILES}
    used = {name: set() for name in names}
    for name, path in names.items():
        if path.name == "__init__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found = {f"{node.module}.{alias.name}" for alias in node.names} & set(names) or {node.module}
                used[name] |= found & set(names)
    assert len(list(TopologicalSorter(used).static_order())) == len(names) > 200  # CycleError names the files


FORBIDDEN = {"pickle.load", "pickle.loads", "torch.load", "yaml.load", "eval", "exec"}


@pytest.mark.parametrize(
    ("package", "path"), FILES, ids=lambda x: str(x.relative_to(ROOT)) if isinstance(x, Path) else x
)
def test_nothing_foreign_is_ever_run(package, path):
    """No pickles, no remote code, no evaluation of text. The sandbox's worker, whose job it is, is the exception."""
    if path.is_relative_to(ROOT / "sandbox" / "worker"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN, f"line {node.lineno}"
            given = {keyword.arg for keyword in node.keywords}
            assert "trust_remote_code" not in given, f"line {node.lineno}"


@pytest.mark.parametrize(
    ("command", "name"),
    [("agpo.train", "evals"), ("data_curation.build", "evals"), ("agpo.train", "sandbox"), ("evals.run", "sandbox")],
)
def test_another_package_of_our_name_is_said_in_one_line(command, name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('OpenAI wants a key')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode
    assert f"`{name}` is another package here ({tmp_path}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
