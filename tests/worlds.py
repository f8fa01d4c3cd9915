"""Small worlds that more than one test is about."""
import itertools
from types import SimpleNamespace

import torch

from shimmer.models import Prediction


def generator(seed): return torch.Generator().manual_seed(seed)


def config(V, L, pad=None): return SimpleNamespace(vocab_size=V, mask_token_id=V, pad_token_id=pad, max_seq_len=L)


def all_texts(V, L): return torch.tensor(list(itertools.product(range(V), repeat=L)))


class Table(torch.nn.Module):
    "A made-up distribution for every canvas and position: an inconsistent model."
    def __init__(self, V, L, seed):
        super().__init__()
        self.answers = torch.randn(*[V + 1] * L, L, V, generator=generator(seed), dtype=torch.float64)
        self.config = config(V, L)

    def denoise(self, ids, state=None, at=None): return Prediction(self.answers[tuple(ids.T)]).at(at)
