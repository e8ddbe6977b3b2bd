"""`ddim serve --replicas` on a real Ray of this machine: what depends on the replicas' being processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from clusters import parent, raylet, two_nodes
from serving import eventually, process

from ddim import errors
from ddim.cli import main

KEY = "a-key-of-enough-letters"


@dataclass
class Cluster:
    """A server with two replicas.

    Attributes:
        running: its process.
        port: where it listens.
        log: what it writes.
    """

    running: subprocess.Popen[bytes]
    port: int
    log: Path
    clients: list[openai.OpenAI] = field(default_factory=list)

    def client(self, retries: int = 0) -> openai.OpenAI:
        """The official client."""
        url = f"http://127.0.0.1:{self.port}/v1"
        self.clients.append(openai.OpenAI(base_url=url, api_key=KEY, max_retries=retries, timeout=60))
        return self.clients[-1]

    def draw(self, retries: int = 0, **more: Any) -> Any:
        """A small picture, drawn at once."""
        extra = {"steps": 2, "seed": 7, **more.pop("extra", {})}
        return self.client(retries).images.generate(prompt="", extra_body=extra, **more)

    def read(self, path: str) -> str:
        """What is at an address."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def lines(self, message: str) -> list[dict[str, Any]]:
        """What the log has of something, as it stands now."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["message"] == message]

    def processes(self) -> dict[str, int]:
        """The processes of the replicas that have started, by the replicas' names."""
        return {line["replica"]: line["process"] for line in self.lines("replica started")}

    def value(self, name: str) -> float:
        """A number of the metrics."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.read("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextlib.contextmanager
def started(folder: Path, *options: str) -> Iterator[Cluster]:
    keys = folder / "keys"
    keys.write_text(KEY)
    command = ("--port", "0", "--model", "digits", "--replicas", "2", "--api-key-file", str(keys), *options)
    with process(folder / "log", *command) as (running, port):
        cluster = Cluster(running, port, folder / "log")
        try:
            eventually(lambda: len(cluster.processes()) == 2)
            yield cluster
        finally:
            for client in cluster.clients:
                client.close()
            running.terminate()
            running.wait(60)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def below(root: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found - {root}
        found |= more


def command(pid: int) -> str:
    """What a process calls itself; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_requests_go_to_whoever_has_less_to_do(cluster: Cluster) -> None:
    alone = cluster.draw().data[0].b64_json
    held = [cluster.draw(stream=True, n=2, extra={"steps": 999}) for _ in range(2)]
    try:
        eventually(lambda: cluster.value('ddim_running{model="digits"}') == 4)
    finally:
        for stream in held:
            stream.close()
    eventually(lambda: cluster.value('ddim_running{model="digits"}') == 0)
    streams = [line for line in cluster.lines("request") if line.get("n") == 2]
    assert Counter(line["replica"] for line in streams) == dict.fromkeys(cluster.processes(), 1)

    with cluster.draw(stream=True, n=10, extra={"steps": 999}):
        before = len(cluster.lines("request"))
        drawn = []
        for _ in range(8):
            time.sleep(0.2)  # a request counts until the replica has heard that its answer was taken
            drawn.append(cluster.draw())

    def quick() -> list[dict[str, Any]]:
        return [line for line in cluster.lines("request")[before:] if line.get("steps") == 2]

    eventually(lambda: len(quick()) == 8)
    assert len({line["replica"] for line in quick()}) == 1  # the one that drew no stream
    assert {each.data[0].b64_json for each in drawn} == {alone}


@pytest.mark.slow
def test_metrics_and_pictures_of_all(cluster: Cluster) -> None:
    before = cluster.value('ddim_images_total{model="digits"}')
    for _ in range(12):
        (picture,) = cluster.draw(response_format="url").data
        with urllib.request.urlopen(picture.url) as answer:
            assert answer.read(4) == b"\x89PNG"
    assert cluster.value('ddim_images_total{model="digits"}') == before + 12
    answered = cluster.value('ddim_requests_total{model="digits",route="generations",status="200"}')
    assert answered >= 12
    assert cluster.value("ddim_stored_bytes") > 12 * 100


@pytest.mark.slow
def test_a_killed_replica_is_replaced_and_clients_that_retry_get_their_pictures(cluster: Cluster) -> None:
    cluster.draw()
    failed: list[openai.APIStatusError] = []
    drawn: list[Any] = []

    def patient() -> None:
        drawn.append(cluster.draw(retries=2, n=10, extra={"steps": 400}))

    def hasty() -> None:
        try:
            drawn.append(cluster.draw(n=10, extra={"steps": 400}))
        except openai.APIStatusError as error:
            failed.append(error)

    stream = cluster.draw(stream=True, n=1, extra={"steps": 999})
    threads = [threading.Thread(target=work) for work in (patient, hasty, patient, hasty)]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(cluster.value(f'ddim_{what}{{model="digits"}}') for what in ("running", "queued")) == 41)
    before = cluster.processes()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(120)
    with pytest.raises(openai.APIError, match="send it again"):
        list(stream)
    assert [(error.status_code, error.body["code"]) for error in failed] == [(503, "replica_lost")] * 2  # type: ignore[index]
    assert len(drawn) == 2
    assert all(len(answer.data) == 10 for answer in drawn)
    eventually(lambda: len(cluster.processes()) == 4)
    assert cluster.lines("replica lost")
    eventually(lambda: json.loads(cluster.read("/ready"))["status"] == "ready")


def listening(pid: int) -> Iterator[str]:
    """The addresses, as /proc has them, at which a process listens."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                yield fields[1].rpartition(":")[0]


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


@pytest.mark.slow
def test_nothing_listens_to_other_machines(cluster: Cluster) -> None:
    """But for the port by which replicas call each other, which answers only who has Ray's token."""
    found = set()
    for pid in below(cluster.running.pid) | {cluster.running.pid}:
        with contextlib.suppress(OSError):
            found |= {(command(pid).partition(":ddim")[0], address in LOOPBACK) for address in listening(pid)}
    assert {name for name, is_loopback in found if not is_loopback} <= {"ray::ServeReplica"}
    assert len({name for name, is_loopback in found if is_loopback}) > 3  # the test sees them


@pytest.mark.slow
def test_sigterm_lets_what_runs_finish_and_leaves_no_process(tmp_path: Path) -> None:
    with started(tmp_path, "--grace", "60") as cluster:
        cluster.draw()
        children = below(cluster.running.pid)
        assert set(cluster.processes().values()) <= children
        kinds: list[str] = []
        is_drawing = threading.Event()
        stream = cluster.draw(stream=True, partial_images=3, extra={"steps": 900})

        def follow() -> None:
            for event in stream:
                kinds.append(event.type)
                is_drawing.set()

        work = threading.Thread(target=follow)
        work.start()
        assert is_drawing.wait(60)
        cluster.running.send_signal(signal.SIGTERM)
        assert cluster.running.wait(90) == 0
        work.join(60)
        assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
        assert [line["message"] for line in map(json.loads, cluster.log.read_text().splitlines())][-1] == "ended"
        eventually(lambda: not any(map(is_alive, children)))


@pytest.mark.slow
def test_when_the_server_is_killed_nothing_goes_on_to_draw(tmp_path: Path) -> None:
    """Two small processes of Ray, its agents, notice only later."""
    with started(tmp_path) as cluster:
        children = {pid for pid in below(cluster.running.pid) if "Agent" not in command(pid)}
        assert set(cluster.processes().values()) <= children
        cluster.running.kill()
        eventually(lambda: not any(map(is_alive, children)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_replicas_on_the_nodes_of_a_cluster(tmp_path: Path) -> None:
    """Each has one; one that is killed is replaced on its node, as the other one has no processor left."""
    with two_nodes() as nodes, started(tmp_path, "--ray-address", nodes.address) as cluster:
        raylets = {raylet(nodes.head_node), raylet(nodes.second)}
        before = cluster.processes()
        assert {parent(pid) for pid in before.values()} == raylets
        alone = cluster.draw().data[0].b64_json
        drawn = [cluster.draw(extra={"seed": 7}).data[0].b64_json for _ in range(4)]
        assert set(drawn) == {alone}
        os.kill(next(pid for pid in before.values() if parent(pid) == raylet(nodes.second)), signal.SIGKILL)
        eventually(lambda: len(cluster.processes()) == 3, 120)
        (new,) = set(cluster.processes().values()) - set(before.values())
        assert parent(new) == raylet(nodes.second)
        assert cluster.draw(retries=5).data[0].b64_json == alone
        cluster.running.terminate()
        assert cluster.running.wait(60) == 0
        eventually(lambda: not any(map(is_alive, [*before.values(), new])))
        assert all(map(is_alive, raylets))  # the cluster is its owner's


def test_without_ray_it_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, extra: str) -> None:
        raise errors._missing(module, extra)

    monkeypatch.setattr("ddim.cli.serve.check_installed", missing)
    assert main(["serve", "--replicas", "2"]) == 1
    assert "this needs ray, which is not installed: pip install 'ddim[scale]'" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        assert main(["serve", "--port", "0", "--replicas", "2", "--ray-address", address]) == 1
    assert f"--ray-address {address} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray-address", "auto"], "--ray-address is for replicas: give --replicas"),
        (["--replicas", "0"], "--replicas must be 1 or more"),
        (["--replicas", "2", "--studio"], "leave --replicas out"),
    ],
)
def test_what_does_not_go_together(capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    assert main(["serve", *options]) == 1
    assert said in capsys.readouterr().err
