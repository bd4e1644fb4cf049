"""The mirror: packages, signature, serving, and what it does wrong on purpose."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from lab.mirror import apt, build, faults
from lab.mirror.debs import File, MirrorError, Package, write
from lab.mirror.server import MirrorServer, read_login
from tests.unit.lab.gpu_support import PROJECT, needs_compiler

LOGIN = "lab:s3cret-of-the-mirror"
missing = [tool for tool in (*apt.TOOLS, "zstd") if shutil.which(tool) is None]
needs_tools = pytest.mark.skipif(
    bool(missing),
    reason=f"the mirror is built with {', '.join(missing)}, missing here: apt-get install "
    "apt-utils dpkg gpg gpg-agent zstd",
)
pytestmark = [needs_tools, needs_compiler]


@pytest.fixture(scope="session")
def content(tmp_path_factory):
    """A mirror that was built once, and its cache."""
    folder = tmp_path_factory.mktemp("mirror")
    build.build(folder / "root", folder / "cache")
    return folder


@pytest.fixture
def root(content, tmp_path):
    """A mirror's root of the test's own."""
    shutil.copytree(content / "root", tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def server(root, tmp_path):
    """The mirror, serving with a login."""
    one = MirrorServer(("127.0.0.1", 0), root, LOGIN, tmp_path / "access.log")
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()
    one.log.close()


@pytest.fixture
def get(server):
    """Ask the mirror; status, headers and body."""

    def ask(path, *, login=LOGIN, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        if login:
            headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        try:
            connection.request(
                method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    return ask


def stanzas(root):
    """The index, one dict a package."""
    text = (root / "apt/Packages").read_text()
    found = []
    for stanza in text.strip().split("\n\n"):
        lines = [line for line in stanza.splitlines() if not line.startswith(" ")]
        found.append(dict(line.split(": ", 1) for line in lines))
    return found


def test_the_index_has_every_name_in_every_version(root):
    """Three drivers of two branches, their pins, two toolkits, headers for this kernel."""
    versions: dict[str, set[str]] = {}
    for stanza in stanzas(root):
        versions.setdefault(stanza["Package"], set()).add(stanza["Version"])
    drivers = {"580.126.20-1", "580.159.03-1", "595.45.04-1"}
    for name in ("nvidia-open", "cuda-drivers", "nvidia-driver-cuda", "libnvidia-ml1", "nvidia-kernel-dkms"):
        assert versions[name] == drivers
    for name in ("nvidia-kernel-open-dkms", "nvidia-modprobe", "nvidia-persistenced", "nvidia-fabricmanager"):
        assert versions[name] == drivers
    assert versions["nvidia-driver-pinning-580"] == {"580.159.03-1"}
    assert {f"nvidia-driver-pinning-{v}" for v in ("595", "580.126.20", "580.159.03", "595.45.04")} <= set(
        versions
    )
    toolkit = ("nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container1")
    assert all(versions[name] == {"1.19.1-1", "1.20.0-1"} for name in (*toolkit, "libnvidia-container-tools"))
    assert f"linux-headers-{os.uname().release}" in versions


def test_the_files_are_those_of_the_index(root):
    """Size and SHA-256 of every package."""
    for stanza in stanzas(root):
        data = (root / "apt" / stanza["Filename"]).read_bytes()
        assert len(data) == int(stanza["Size"])
        assert hashlib.sha256(data).hexdigest() == stanza["SHA256"]


def test_a_driver_holds_together_at_one_version(root):
    """What belongs together depends on exactly its own version, and the flavours exclude each other."""
    by_key = {(s["Package"], s["Version"]): s for s in stanzas(root)}
    cuda = by_key["nvidia-driver-cuda", "580.159.03-1"]["Depends"]
    assert "libnvidia-ml1 (= 580.159.03-1)" in cuda
    assert "nvidia-kernel-open-dkms (= 580.159.03-1) | nvidia-kernel-dkms (= 580.159.03-1)" in cuda
    assert by_key["nvidia-kernel-open-dkms", "580.159.03-1"]["Conflicts"] == "nvidia-kernel-dkms"
    toolkit = by_key["nvidia-container-toolkit", "1.20.0-1"]["Depends"]
    assert toolkit == "nvidia-container-toolkit-base (= 1.20.0-1), libnvidia-container-tools (= 1.20.0-1)"


def test_the_library_carries_its_version_in_its_name(root, tmp_path):
    """As in the real package: the file is versioned, libnvidia-ml.so.1 is a link to it."""
    deb = next((root / "apt").glob("libnvidia-ml1_595*.deb"))
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path / "x"], check=True)
    link = next((tmp_path / "x").rglob("libnvidia-ml.so.1"))
    assert str(link.readlink()) == "libnvidia-ml.so.595.45.04"
    assert link.resolve().read_bytes()[:4] == b"\x7fELF"


def test_packages_belong_to_root(root):
    """Whoever builds them, the files in them are root's and not writable for others."""
    deb = next((root / "apt").glob("nvidia-driver-cuda_595*.deb"))
    listing = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True).stdout
    assert listing
    assert not [
        line for line in listing.splitlines() if line[0] != "l" and (line[5] == "w" or line[8] == "w")
    ]
    assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}


def test_the_signature_is_good_and_a_changed_index_breaks_it(root, tmp_path):
    """Gpgv accepts InRelease by the exported key, and nothing else."""
    if shutil.which("gpgv") is None:
        pytest.skip("gpgv is missing: apt-get install gpgv")
    command = ["gpgv", "--keyring", str(root / "apt/drover-lab.gpg")]
    good = subprocess.run([*command, root / "apt/InRelease"], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    detached = [*command, root / "apt/Release.gpg", root / "apt/Release"]
    assert subprocess.run(detached, capture_output=True, check=False).returncode == 0
    spoiled = tmp_path / "InRelease"
    spoiled.write_bytes(
        faults.spoil(frozenset({"tampered"}), "apt/InRelease", (root / "apt/InRelease").read_bytes())
    )
    assert subprocess.run([*command, spoiled], capture_output=True, check=False).returncode != 0


def test_release_names_the_index_and_its_origin(root):
    """Pins by origin work, and the index's hash is under the signature."""
    release = (root / "apt/InRelease").read_text()
    assert "Origin: NVIDIA\n" in release
    for name in ("Packages", "Packages.gz"):
        data = (root / "apt" / name).read_bytes()
        assert re.search(rf"{hashlib.sha256(data).hexdigest()} +{len(data)} +(\./)?{name}\n", release)


def test_no_secret_key_is_served(root):
    """Only public keys lie in the root."""
    for file in root.rglob("*"):
        if file.is_file():
            assert b"PRIVATE KEY" not in file.read_bytes(), file
    shown = subprocess.run(
        ["gpg", "--show-keys", "--with-colons", root / "apt/drover-lab.gpg"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    facts = json.loads((root / "mirror.json").read_text())
    assert facts["apt_key_fingerprint"] in shown
    assert "sec:" not in shown


def test_a_second_build_is_the_first(content, tmp_path):
    """The same sources make no new content; a new root gets the same bytes, and the key stays."""
    facts = build.build(tmp_path / "other", content / "cache")
    assert len(list((content / "cache").glob("mirror-????????????????"))) == 1
    first = json.loads((content / "root/mirror.json").read_text())
    assert facts["apt_key_fingerprint"] == first["apt_key_fingerprint"]
    assert (tmp_path / "other/apt/InRelease").read_bytes() == (content / "root/apt/InRelease").read_bytes()
    assert (content / "cache/mirror-key.asc").stat().st_mode & 0o077 == 0


def test_the_facts_name_what_a_fleet_needs(root):
    """Key file, fingerprint, and the checksum of the release that is the fleet's version."""
    facts = json.loads((root / "mirror.json").read_text())
    variables = facts["fleet_variables"]
    release = facts["ollama"][variables["ollama_version"]]
    data = (root / release["path"]).read_bytes()
    assert variables["ollama_archive_sha256"] == release["sha256"] == hashlib.sha256(data).hexdigest()
    assert variables["mirror_apt_key_file"].endswith("/apt/drover-lab.gpg")
    assert set(facts["ollama"]) == {"0.33.0", "0.32.15"}


def test_a_login_is_needed_for_files_but_not_for_models(get):
    """Apt and releases want the login; the registry is open, as Ollama has none to give."""
    assert get("/apt/InRelease")[0] == 200
    for path in ("/apt/InRelease", "/ollama/v0.33.0/sha256sum.txt"):
        status, headers, _ = get(path, login=None)
        assert (status, headers["WWW-Authenticate"]) == (401, 'Basic realm="drover lab mirror"')
        assert get(path, login="lab:wrong")[0] == 401
    assert get("/v2/", login=None)[0] == 200


@pytest.mark.parametrize(
    "path", ["/apt/../faults", "/../etc/passwd", "/faults", "/%2e%2e/etc/passwd", "/apt/", "/"]
)
def test_nothing_else_is_served(get, root, path):
    """Neither what lies beside the mirror nor a listing."""
    faults.set_fault(root, "unsigned")
    assert get(path)[0] in {400, 404}


def test_names_as_apt_asks_for_them(get, root):
    """Apt asks for `./name` and writes a plus as %2b."""
    name = next((root / "apt").glob("dkms_*")).name
    assert get("/apt/./" + name.replace("+", "%2b"))[2] == (root / "apt" / name).read_bytes()


def test_ranges(get, root):
    """A piece, the rest, the end, and what lies beyond it."""
    data = (root / "apt/Packages").read_bytes()
    for wanted, piece in (("bytes=10-19", data[10:20]), ("bytes=100-", data[100:]), ("bytes=-7", data[-7:])):
        status, headers, body = get("/apt/Packages", Range=wanted)
        assert (status, body) == (206, piece)
        assert headers["Content-Range"].endswith(f"/{len(data)}")
    assert get("/apt/Packages", Range=f"bytes={len(data)}-")[0] == 416
    assert get("/apt/Packages", Range="bytes=0-0", If_Range="Thu, 01 Jan 1970 00:00:00 GMT")[0] == 200


def test_what_is_fresh_is_not_sent_again(get):
    """If-Modified-Since of the same date is a 304; HEAD has no body."""
    _, headers, _ = get("/apt/InRelease")
    status, _, body = get("/apt/InRelease", If_Modified_Since=headers["Last-Modified"])
    assert (status, body) == (304, b"")
    status, headers, body = get("/apt/InRelease", method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


def test_a_model_is_pulled_by_its_manifest(get):
    """The registry's manifest, and a blob that answers with where it is."""
    status, _, body = get("/v2/library/llama3.2/manifests/3b", login=None)
    assert status == 200
    digest = json.loads(body)["config"]["digest"]
    status, headers, _ = get(f"/v2/library/llama3.2/blobs/{digest}", login=None)
    assert status == 200 or "Location" in headers


def test_faults_are_served_and_taken_back(get, root):
    """Unsigned, tampered, corrupt: each shows in what is served, with another date; clear ends all."""
    good, archive = get("/apt/InRelease"), "/ollama/v0.33.0/ollama-linux-amd64.tar.zst"
    whole = get(archive)[2]
    faults.set_fault(root, "unsigned")
    assert [get(f"/apt/{name}")[0] for name in ("InRelease", "Release.gpg", "Release")] == [404, 404, 200]
    faults.set_fault(root, "clear")
    faults.set_fault(root, "tampered")
    bad = get("/apt/InRelease")
    assert bad[0] == 200
    assert bad[2] != good[2]
    faults.set_fault(root, "corrupt-ollama")
    spoiled = get(archive)[2]
    assert len(spoiled) == len(whole)
    assert spoiled != whole
    assert get("/ollama/v0.33.0/sha256sum.txt")[2].decode().startswith(hashlib.sha256(whole).hexdigest())
    faults.set_fault(root, "clear")
    assert get("/apt/InRelease")[2] == good[2]
    assert get(archive)[2] == whole


def test_a_fault_that_does_not_exist(root, tmp_path):
    """Wrong names and wrong roots are refused."""
    with pytest.raises(MirrorError, match="no fault of the mirror"):
        faults.set_fault(root, "fire")
    with pytest.raises(MirrorError, match="no mirror's root"):
        faults.set_fault(tmp_path / "nowhere", "clear")


def test_the_access_log_has_no_credentials(get, server, tmp_path):
    """Who asked for what, and neither the login nor its encoding."""
    get("/apt/InRelease")
    server.log.flush()
    text = (tmp_path / "access.log").read_text()
    assert '"GET /apt/InRelease HTTP/1.1" 200' in text
    assert "s3cret" not in text
    assert base64.b64encode(LOGIN.encode()).decode() not in text


def test_a_login_that_others_may_read_is_refused(tmp_path):
    """The file with the login is its owner's alone."""
    file = tmp_path / "login"
    file.write_text("lab:x\n")
    file.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        read_login(file)
    file.chmod(0o600)
    assert read_login(file) == "lab:x"


def test_the_command_serves_until_it_is_told_to_stop(root, tmp_path):
    """`serve` writes its pid, answers, and SIGTERM ends it with its pid file removed."""
    login = tmp_path / "login"
    login.write_text(LOGIN)
    login.chmod(0o600)
    pid_file = tmp_path / "pid"
    words = [
        "--root",
        root,
        "--bind",
        "127.0.0.1",
        "--port",
        "0",
        "--auth-file",
        login,
        "--pid-file",
        pid_file,
    ]
    command = [sys.executable, "-m", "lab.mirror", "serve", *map(str, words)]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        port = int(re.search(r":(\d+)/", line)[1])
        assert pid_file.read_text() == f"{process.pid}\n"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/apt/Release")
        assert connection.getresponse().status == 401
        connection.close()
        process.terminate()
        assert process.wait(10) == 0
    assert not pid_file.exists()


def test_a_package_that_cannot_be_built_says_why(tmp_path):
    """dpkg-deb's own words are passed on."""
    bad = Package("Bad_Name", "1", "x", files={"etc/x": File(b"")})
    with pytest.raises(MirrorError, match="dpkg-deb could not build"):
        write(bad, tmp_path / "scratch", tmp_path)


def test_missing_tools_are_named(monkeypatch):
    """What to install, in one line."""
    monkeypatch.setattr(apt.shutil, "which", lambda tool: None if tool.startswith("gpg") else "/usr/bin/x")
    with pytest.raises(MirrorError, match="apt-get install gpg gpg-agent"):
        apt.need_tools()
