"""Where do weights come from, and are they the right ones? The names for the rest of the library."""

from safetyheads.models.checkpoints.fetching import fetch_model_file
from safetyheads.models.checkpoints.known import KNOWN_MODELS, KNOWN_SIBLINGS, KnownModel, is_known
from safetyheads.models.checkpoints.loading import Checkpoint, load_checkpoint
from safetyheads.models.checkpoints.reading import quiet_transformers

__all__ = [
    "KNOWN_MODELS",
    "KNOWN_SIBLINGS",
    "Checkpoint",
    "KnownModel",
    "fetch_model_file",
    "is_known",
    "load_checkpoint",
    "quiet_transformers",
]
