"""Does the Hugging Face Hub answer? Asked in one way, for weights and for prompts alike."""

import http.client
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request

HUB_PATIENCE = 3.0
"""Seconds the Hub is given to answer one question, before it counts as out of reach."""

_BLOCKED = (403, 407)
"""What a proxy says that lets nobody through; the Hub's own front page never says either."""


def hub_answers(seconds: float | None = None) -> bool:
    """Ask the Hub once, whether it answers within `seconds`, `HUB_PATIENCE` by default.

    A refusal by a proxy is no answer; any other answer below 500 is one, a login wanted among them. The Hub's own
    client would retry for minutes.
    """
    if hub_forbidden():
        return False
    patience = HUB_PATIENCE if seconds is None else seconds
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # in a thread, because looking up a name obeys no timeout
    threading.Thread(target=lambda: answers.put(_answer(patience)), daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return False


def _answer(patience: float) -> bool:
    """What the Hub says to one question, or that it says nothing."""
    try:
        urllib.request.urlopen(hub_request(hub_endpoint(), "HEAD"), timeout=patience).close()
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in _BLOCKED
    except urllib.error.URLError as error:
        # a certificate unknown here may be known to huggingface_hub
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, http.client.HTTPException, ValueError):
        return False
    return True


def hub_silence() -> str:
    """Say why the Hub counts as out of reach, for an error."""
    if hub_forbidden():
        return "the Hub is not asked, because HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    return f"{hub_endpoint()} did not answer within {HUB_PATIENCE:g} seconds"


def hub_forbidden() -> bool:
    """Whether the environment says that nobody may ask the Hub; read anew each time, unlike the Hub's own client."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def hub_endpoint() -> str:
    """The Hub's address: `HF_ENDPOINT`, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_request(url: str, method: str = "GET") -> urllib.request.Request:
    """A request in the library's name."""
    return urllib.request.Request(url, method=method, headers={"User-Agent": "safetyheads"})
