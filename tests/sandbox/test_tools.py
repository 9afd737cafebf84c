"""The commands, the cleaning of /tmp, and what the documentation shows."""

import os
import re
import subprocess
import sys

import pytest
from sandbox_helpers import ROOT

from sandbox import Limits, Problem, Program, Sandbox, SandboxError, Test, channel, selfcheck
from sandbox.backends.embedded import Embedded
from sandbox.channel import WorkerFailure
from sandbox.worker import jail


def command(*words: str, environment: dict[str, str] | None = None, **kwargs) -> subprocess.CompletedProcess[str]:
    engine = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **engine, **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, check=False, env=environment, **kwargs
    )


def test_doctor_tells_what_can_be_enforced_and_why_not(embedded):
    done = command("sandbox.doctor")
    assert done.returncode == 0, done.stderr
    lines = {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()}
    assert lines["embedded, full"] == ["yes"] * 5
    assert lines["docker"] == ["not", "usable"]
    assert "docker: no docker engine answers" in done.stdout or "docker: docker is not installed" in done.stdout
    assert 'backend="auto" takes: embedded, full' in done.stdout


def test_a_program_that_may_not_be_started_is_not_there(embedded, tmp_path):
    """As with a folder in PATH that the user may not enter. Root may enter any, but starts no file without its x."""
    for name in ("docker", "podman"):
        (tmp_path / name).touch(0o644)
    for words in (["sandbox.doctor"], ["sandbox.clean"], ["sandbox.backends.docker"]):
        done = command(*words, environment={"PATH": str(tmp_path)})
        assert "Traceback" not in done.stderr
        if words == ["sandbox.doctor"]:
            assert "docker: docker is not installed" in done.stdout
            assert 'backend="auto" takes: embedded, full' in done.stdout
        else:
            assert done.returncode == (2 if "backends" in words[0] else 0), done.stderr


def test_a_python_that_cannot_be_started_is_the_reason():
    found = Embedded("full", python="/nonexistent/python").probe()
    assert found.reason == "full: /nonexistent/python cannot be started: No such file or directory"


def test_a_worker_that_cannot_be_started_keeps_nothing_open():
    before = os.listdir("/proc/self/fd")
    with pytest.raises(WorkerFailure) as failure:  # with its traceback, which keeps what its frames have
        channel.start(["/nonexistent/python"])
    assert os.listdir("/proc/self/fd") == before, failure


@pytest.mark.parametrize("name", ["doctor", "selfcheck", "clean", "backends.docker"])
def test_help_helps_and_a_wrong_argument_does_nothing(name):
    told = command(f"sandbox.{name}", "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: python -m sandbox.{name}")
    wrong = command(f"sandbox.{name}", "--frobnicate")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unrecognized arguments: --frobnicate" in wrong.stderr


def test_a_backend_that_is_not_here_is_one_line():
    told = command("sandbox.selfcheck", "--backend", "docker")
    assert (told.returncode, told.stdout) == (2, "")
    assert re.fullmatch(r"error: no backend can hold a hostile program here. docker: .*\n", told.stderr)
    assert command("sandbox.selfcheck", "--python", "python3").returncode == 2


@pytest.mark.slow
def test_selfcheck_holds(embedded):
    done = command("sandbox.selfcheck", "--backend", "full")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("ok ") for line in lines) == len(selfcheck.CHECKS)
    assert lines[-1].startswith(f"{len(selfcheck.CHECKS)} of {len(selfcheck.CHECKS)} checks hold")


def test_selfcheck_fails_when_one_check_does(embedded, monkeypatch, capsys):
    false = selfcheck.Check("sockets are open", "AC", "import socket\nsocket.socket()\nprint(7)")
    monkeypatch.setattr(selfcheck, "CHECKS", [false])
    assert selfcheck.main(["--backend", "full"]) == 1
    assert "FAILED  sockets are open: RE where AC was expected" in capsys.readouterr().out


def test_clean_says_when_there_is_nothing(embedded):
    command("sandbox.clean")
    done = command("sandbox.clean")
    assert done.stdout == "nothing left over\n"


def test_what_is_not_enforced_is_refused_or_named(embedded, monkeypatch):
    """A backend that lets programs into the network needs `allow_unsafe`, and every report says so."""
    from dataclasses import replace

    weak = Embedded("full")
    found = replace(embedded.probe(), enforced=embedded.probe().enforced - {"network"}, reason="network reached: 2")
    monkeypatch.setattr(Embedded, "probe", lambda self: found)
    with pytest.raises(SandboxError, match="does not enforce network"):
        Sandbox(weak)
    with pytest.raises(SandboxError, match="does not enforce network"):
        Sandbox("embedded")
    with Sandbox(weak, workers=1, allow_unsafe=True) as sandbox:
        (report,) = sandbox.judge_sync([Program("print(1)")], Problem([Test("", "1")]))
    assert report.passed
    assert report.backend == "embedded (full) UNSAFE: does not enforce network"


def test_an_interpreter_that_cannot_be_started_is_a_reason(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such interpreter >&2\nexit 3\n")
    script.chmod(0o755)
    found = Embedded("full", python=str(script)).probe()
    assert not found.level
    assert "no such interpreter" in found.reason


def test_emptying_a_folder_follows_no_link_and_knows_no_depth(tmp_path):
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.mkdir()
    (outside / "file").write_text("kept")
    top.mkdir()
    (top / "link").symlink_to(outside)
    (top / "a").mkdir()
    (top / "a/link").symlink_to(outside)
    (top / ".gone-1").mkdir()
    (top / ".gone-1/x").mkdir()
    (top / ".gone-2").write_text("a name that cleaning would take")
    at = os.getcwd()
    try:
        os.chdir(top)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(at)
    (top / "closed").mkdir()
    (top / "closed/in").mkdir()
    (top / "closed/in").chmod(0)
    (top / "closed").chmod(0)
    jail.empty(str(top))
    assert os.listdir(top) == []
    assert (outside / "file").read_text() == "kept"


def test_the_documented_example_runs(embedded, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/sandbox.md").read_text(), re.DOTALL)
    exec(compile(code, "docs/sandbox.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["AC", "2", "AC", "1"]


def test_the_documented_limits_are_the_defaults():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", (ROOT / "docs/sandbox.md").read_text(), re.MULTILINE))
    assert rows
    for name, value in rows.items():
        assert float(value) == getattr(Limits(), name), name
