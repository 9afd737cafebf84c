"""What no command writes over or deletes, and a store where nothing can be written (docs/files.md)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk
from full_store import fill

from evals.errors import UserError
from evals.outputs import replacing
from evals.report.command import main as report
from evals.run import main as run
from evals.store import Store


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a store where the commands look for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    with Store.open() as store:
        fill(store)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["export", "results", "--overwrite"], "was not made by this command"),
        (["export", ".", "--overwrite"], "was not made by this command"),
        (["export", "mine", "--overwrite"], "was not made by this command"),
        (["export", "results/agpo.db", "--overwrite"], "expected a name that ends in"),
        (["export", "store.csv", "--overwrite"], "is a database"),
        (["html", "--out", "results/agpo.db"], "expected a name that ends in .html"),
        (["html", "--out", "store.html"], "is a database"),
        (["html", "--out", "mine.html"], "is not a file of this command"),
        (["html", "--out", "mine"], "is a folder"),
        (["tables", "--format", "md", "--out", "README.md"], "exists"),
        (["tables", "--format", "csv", "--out", "results/agpo.db", "--overwrite"], "expected a name that ends in .csv"),
        (["tables", "--format", "csv", "--out", "store.csv", "--overwrite"], "is a database"),
        (["rm", "", "--yes"], "name is empty"),
        (["rm", " ", "--yes"], "name is empty"),
        (["export", "x.csv", "--run", ""], "name is empty"),
    ],
)
def test_what_is_not_an_earlier_output_stays(here, capsys, arguments, why):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    (here / "mine.html").write_text("<p>mine</p>")
    (here / "README.md").write_text("mine")
    for name in ("store.csv", "store.html"):
        (here / name).write_bytes((here / "results" / "agpo.db").read_bytes())
    before = snapshot(here)
    assert report(arguments) == 2
    assert why in capsys.readouterr().err
    assert snapshot(here) == before


def test_an_earlier_output_is_replaced(here, monkeypatch, capsys):
    for _ in range(2):
        assert report(["html"]) == 0
        assert report(["export", "out", "--overwrite"]) == 0
        assert report(["tables", "--format", "md", "--out", "t.md", "--overwrite"]) == 0
    next(iter(load_from_disk("out").filter(len)))  # leaves a cache beside it
    (here / "out" / "deep").mkdir()
    again = ["export", str(here / "out"), "--overwrite", "--store", str(here / "results" / "agpo.db")]
    assert report(again) == 0
    (here / "out" / "mine.md").write_text("mine")
    assert report(again) == 2
    assert "holds other files: mine.md" in capsys.readouterr().err
    assert (here / "out" / "mine.md").read_text() == "mine"
    (here / "out" / "mine.md").unlink()
    (here / "out" / "deep").mkdir()
    monkeypatch.chdir(here / "out" / "deep")
    assert report(again) == 2
    assert "holds the working directory" in capsys.readouterr().err


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fail():
        with replacing(out) as made:
            made.mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]
    with replacing(out) as made:
        made.mkdir()
        (made / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_reading_makes_no_store(tmp_path, capsys):
    missing = tmp_path / "nosuch.db"
    assert run(["--regrade", "x", "--store", str(missing)]) == 2
    assert run(["--model", "x", "--checkpoints", "all", "--dry-run", "--store", str(missing)]) == 2
    assert capsys.readouterr().err.count(f"no results store at {missing}") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_a_store_on_a_read_only_mount_can_be_read(here, capsys):
    place = here / "mount"
    place.mkdir()
    script = (
        f"mount --bind {here / 'results'} {place} && mount -o remount,bind,ro {place} && "
        f"exec python -m evals.report runs --store {place / 'agpo.db'}"
    )
    found = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, env=environment(), timeout=300
    )
    if "unshare failed" in found.stderr or "permission denied" in found.stderr:
        pytest.skip(f"no mount namespace: {found.stderr.strip()}")
    assert found.returncode == 0, found.stderr
    with Store.open() as store:
        assert all(run.id in found.stdout for run in store.runs())


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": root}


def test_changes_that_lie_in_the_log_of_an_unwritable_store_are_said(here, monkeypatch):
    (here / "results" / "agpo.db-wal").write_bytes(b"x")
    monkeypatch.setattr("evals.store.database.os.access", lambda *_: False)
    with pytest.raises(UserError, match="its last changes are still in agpo"):
        Store.open()
