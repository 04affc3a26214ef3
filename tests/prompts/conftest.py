"""No test here reads the folder of prompts that a developer may have named."""

import pytest


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch):
    monkeypatch.delenv("SAFETYHEADS_DATA", raising=False)
