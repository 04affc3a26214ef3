"""Where are model files kept, are they whole, and who is writing one right now?"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of model files: `SAFETYHEADS_CACHE`, or `~/.cache/safetyheads`."""
    chosen = os.environ.get("SAFETYHEADS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "safetyheads"


def sha256_of(path: Path, cache: Path) -> str:
    """Return a file's SHA-256, remembered while its size and time of change stay the same."""
    try:
        note = json.loads(_note(path, cache).read_text(encoding="utf-8"))
        if note["stamp"] == _stamp(path):
            return str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    remember_sha256(path, cache, sha256)
    return sha256


def remember_sha256(path: Path, cache: Path, sha256: str) -> None:
    """Note a file's SHA-256 with its size and time of change."""
    note = _note(path, cache)
    with contextlib.suppress(OSError):  # only costs the next load some time
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh = note.with_suffix(f".{os.getpid()}")
        fresh.write_text(
            json.dumps({"file": str(path), "stamp": _stamp(path), "sha256": sha256}),
            encoding="utf-8",
        )
        os.replace(fresh, note)


def _note(path: Path, cache: Path) -> Path:
    return (
        cache / "verified" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]}.json"
    )


def _stamp(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; raises PermissionError where the folder cannot be written."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process to finish with %s", path.stem)
            lock.acquire()
    except OSError as error:
        raise PermissionError(
            f"cannot write to the model cache {path.parent} ({error}). Set SAFETYHEADS_CACHE to a "
            "folder that can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()


def require_space(folder: Path, size: int, purpose: str) -> None:
    """Raise OSError where the folder's disk has fewer than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"to {purpose} takes {size / 1e6:,.0f} MB, but {folder} has {free / 1e6:,.0f} MB "
            "left. Free some space, or set SAFETYHEADS_CACHE to a folder on another disk."
        )


# Bytes of each fixed-size GGUF metadata type; 8 is a string and 9 an array.
