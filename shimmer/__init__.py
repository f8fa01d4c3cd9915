__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .appending import generate_left_to_right
    from .canvases import encode_corpus
    from .checkpoints import load_checkpoint, save_checkpoint
    from .corpora import Tales, load_corpus
    from .gpt import GPTConfig, GPTModel
    from .likelihood import bits_per_byte, duel_nll, left_to_right_nll, nelbo, nll
    from .lira import LatentCanvasConfig, LatentCanvasModel
    from .objectives import MaskedLM, NextToken
    from .policies import TopK
    from .samplers import generate_topk, generate_with_remasking, refine
    from .schedules import PROGRESSIVE, Stage, TrainConfig
    from .tokenizers import train_tokenizer
    from .training import fit

# What most users need, found in its module when it is asked for: importing shimmer costs nothing.
_HOMES = {
    "appending": ("generate_left_to_right",),
    "canvases": ("encode_corpus",),
    "checkpoints": ("load_checkpoint", "save_checkpoint"),
    "corpora": ("Tales", "load_corpus"),
    "gpt": ("GPTConfig", "GPTModel"),
    "likelihood": ("bits_per_byte", "duel_nll", "left_to_right_nll", "nelbo", "nll"),
    "lira": ("LatentCanvasConfig", "LatentCanvasModel"),
    "objectives": ("MaskedLM", "NextToken"),
    "policies": ("TopK",),
    "samplers": ("generate_topk", "generate_with_remasking", "refine"),
    "schedules": ("PROGRESSIVE", "Stage", "TrainConfig"),
    "tokenizers": ("train_tokenizer",),
    "training": ("fit",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    "A name of the library, or one of its modules."
    if name in _HOME: return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _HOMES: return importlib.import_module(f".{name}", __name__)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}: import what it doesn't offer from the "
        "module that has it"
    )


def __dir__() -> list[str]: return sorted([*globals(), *__all__])
