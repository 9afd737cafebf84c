"""The Docker backend against a real engine."""

import os
import subprocess
import threading
import time

import pytest
from sandbox_helpers import ADD, SLOW, SUM, kill, start_owner, tree, wait_until

from sandbox import Limits, Program, Sandbox, SandboxError
from sandbox.backends import choose, docker
from sandbox.backends.docker import Docker

pytestmark = pytest.mark.docker


@pytest.fixture
def backend(engine) -> Docker:
    backend = Docker()
    found = backend.probe()
    assert found.secure, found
    return backend


def containers() -> list[str]:
    done = subprocess.run(
        ["docker", "ps", "--all", "--filter", f"label={docker.LABEL}.owner", "--format", "{{.Names}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_auto_takes_docker_where_an_engine_answers(engine):
    chosen, found = choose("auto", allow_unsafe=False)
    assert isinstance(chosen, Docker)
    assert found.level == "container"


def test_judges_in_warm_containers(backend):
    with Sandbox(backend, workers=2) as sandbox:
        reports = sandbox.judge_sync([Program(f"{ADD}#{i}") for i in range(30)] + [Program("print(0)")], SUM)
        assert len(containers()) == 2
    assert [str(r.verdict) for r in reports] == ["AC"] * 30 + ["WA"]
    assert reports[0].backend == "docker (container)"
    assert wait_until(lambda: not containers())


def test_the_container_is_hardened(backend):
    """What the engine itself was told, beside what the worker adds."""
    with Sandbox(backend, workers=1) as sandbox:
        sandbox.judge_sync([Program(ADD)], SUM)
        (name,) = containers()
        form = (
            "{{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.Config.User}} "
            "{{.HostConfig.SecurityOpt}} {{.HostConfig.Memory}} {{.HostConfig.PidsLimit}} {{.HostConfig.Privileged}}"
        )
        done = subprocess.run(["docker", "inspect", "--format", form, name], capture_output=True, text=True, check=True)
    memory = (1024 + 512) << 20
    assert done.stdout.strip() == f"none true [ALL] 65534:65534 [no-new-privileges] {memory} 128 false"


def test_more_memory_than_a_container_has_is_refused(backend):
    with Sandbox(backend, workers=1) as sandbox, pytest.raises(SandboxError, match="memory_mb is 4096"):
        sandbox.judge_sync([Program(ADD, limits=Limits(memory_mb=4096))], SUM)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["client", "container"])
def test_a_killed_client_or_container_is_replaced(backend, what):
    with Sandbox(backend, workers=1, cache=0) as sandbox:
        sandbox.judge_sync([Program(ADD)], SUM)
        before = containers()
        reports = []
        thread = threading.Thread(target=lambda: reports.extend(sandbox.judge_sync([Program(SLOW)], SUM)))
        thread.start()
        time.sleep(0.5)
        if what == "client":
            (client,) = [pid for pid, command in tree(os.getpid()).items() if "\0run\0" in command]
            kill(client)
        else:
            subprocess.run(["docker", "kill", *before], check=True, capture_output=True)
        thread.join(60)
        assert reports[0].passed, reports
        assert reports[0].attempts == 2
        assert wait_until(lambda: not set(before) & set(containers()))
    assert wait_until(lambda: not containers())


def test_nothing_stays_of_a_killed_owner(backend):
    owner, _ = start_owner("docker")
    below = tree(owner.pid)
    assert len(containers()) == 2
    kill(owner.pid, *below)  # the clients with it
    owner.wait()
    assert wait_until(lambda: not containers(), 15), containers()


def test_clean_removes_containers_of_dead_owners_only(backend):
    def start(name: str, owner: str) -> None:
        label = {**docker.labels(), "owner": owner}
        labels = [part for key, value in label.items() for part in ("--label", f"{docker.LABEL}.{key}={value}")]
        command = ["docker", "run", "--detach", "--network", "none", "--name", name, *labels, "--entrypoint", "sleep"]
        subprocess.run([*command, docker.image_tag(), "60"], check=True, capture_output=True)

    start("agpo-test-dead", "999999999-1")
    start("agpo-test-alive", docker.owner_tag())
    try:
        assert docker.remove_leftovers() == ["agpo-test-dead"]
        assert containers() == ["agpo-test-alive"]
    finally:
        subprocess.run(
            ["docker", "rm", "--force", "agpo-test-dead", "agpo-test-alive"], capture_output=True, check=False
        )


def test_an_engine_that_stops_answering_in_the_middle_is_an_error_with_a_message(backend, monkeypatch):
    with Sandbox(backend, workers=1) as sandbox:
        sandbox.judge_sync([Program(ADD)], SUM)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        (client,) = [pid for pid, command in tree(os.getpid()).items() if "\0run\0" in command]
        kill(client)
        (report,) = sandbox.judge_sync([Program(ADD + "#again")], SUM)
    assert report.verdict == "SE"
    assert "docker daemon" in report.detail.lower(), report.detail


def test_without_an_engine(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    found = Docker().probe()
    assert not found.level
    assert "no docker engine answers" in found.reason or "not installed" in found.reason
    with pytest.raises(SandboxError, match="no backend can hold a hostile program here"):
        choose("docker", allow_unsafe=True)
    assert "podmann is not installed" in Docker("podmann").probe().reason
