"""What do we ask the model? Prompt sets, their loaders, templates and tokens.

Three steps, each a function from values to a value:

1. `load_prompts` turns strings, a file or a dataset's name into a `PromptSet`.
2. `render` writes each prompt into a template.
3. `tokenize` renders and turns the texts into a right-padded `TokenBatch`, with one BOS.
"""

from safetyheads.prompts.dressing import FILLER, ROLE_PLAY, lengthen, wrap
from safetyheads.prompts.loading import load_prompts
from safetyheads.prompts.named import DATA_FOLDER_VARIABLE, DATASETS
from safetyheads.prompts.segments import (
    SEGMENTS,
    Segment,
    find_segments,
    shared_template,
    typical_segments,
)
from safetyheads.prompts.sets import PromptSet
from safetyheads.prompts.tokens import (
    TEMPLATES,
    TokenBatch,
    default_template,
    render,
    tokenize,
)

__all__ = [
    "DATASETS",
    "DATA_FOLDER_VARIABLE",
    "FILLER",
    "ROLE_PLAY",
    "SEGMENTS",
    "TEMPLATES",
    "PromptSet",
    "Segment",
    "TokenBatch",
    "default_template",
    "find_segments",
    "lengthen",
    "load_prompts",
    "render",
    "shared_template",
    "tokenize",
    "typical_segments",
    "wrap",
]
