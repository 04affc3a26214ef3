"""How is a file written so that it is never half there?"""

import errno
import os
import platform
import re
import tempfile
import threading
from pathlib import Path

_PARTIAL = re.compile(r"^\..+\.(\d+)-\d+@([^@]*)\.partial$")


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if need be and cleared of what killed writers left; PermissionError if nothing can be written
    there.

    >>> writable_folder(tempfile.mkdtemp()).is_dir()
    True
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        _remove_partial_files(folder)
    except OSError as error:
        raise PermissionError(
            f"cannot write in {folder} ({error.strerror or error}); name another folder, or free this one"
        ) from error
    return folder


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, under a name that is this thread's alone, then renamed.

    Readers and other writers of the same file see the old or the new content, never a mixture. Raises OSError if the
    disk is full, with what stays and what to do.
    """
    owner = f"{os.getpid()}-{threading.get_ident()}@{_machine()}"
    partial = path.with_name(f".{path.name}.{owner}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"the disk of {path.parent} is full: {path.name} ({len(data):,} bytes) could not be written. "
            "The other files there are whole and stay; free some space and run the same command "
            "again, which goes on from them",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_partial_files(folder: Path) -> None:
    """Remove what writers on this machine left behind when they were killed; living writers keep theirs."""
    for path in folder.glob(".*.partial"):
        match = _PARTIAL.match(path.name)
        if match and match[2] == _machine() and not _lives(int(match[1])):
            path.unlink(missing_ok=True)


def _machine() -> str:
    return re.sub(r"\W", "_", platform.node())


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # there, signal 0 is not a question
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
