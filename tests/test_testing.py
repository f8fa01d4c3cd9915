"""The four checks pass what is right, and find what is broken."""
import math

import pytest
import torch
from worlds import Table, all_texts, generator

from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import exact_nelbo, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import Prediction
from shimmer.testing import check_cache, check_estimate, check_no_leak, total_probability

TINY = (3, 3)  # tokens, length


@pytest.fixture(scope="module")
def lira():
    torch.manual_seed(0)
    return LatentCanvasModel(LatentCanvasConfig(vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=12, pad_token_id=10)).eval()


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(2)
    model = GPTModel(GPTConfig(vocab_size=3, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=8, dropout=0.5))
    for p in model.parameters(): p.data.normal_(std=0.7)
    return model.eval()


@pytest.mark.parametrize("share, mass", [(1.0, 1.0), (0.5, 0.5)])
def test_the_mass_of_all_texts_is_added_up(share, mass):
    p = torch.rand(27, generator=generator(0), dtype=torch.float64)
    nats = dict(zip(map(tuple, all_texts(3, 3).tolist()), -(share * p / p.sum()).log()))
    assert math.isclose(total_probability(lambda ids: torch.stack([nats[tuple(row)] for row in ids.tolist()]), 3, 3), mass)


@pytest.mark.parametrize("V, L", [(10, 7), (0, 2)])
def test_what_cannot_be_enumerated_is_refused(V, L):
    with pytest.raises(ValueError, match="1 to 1,000,000"): total_probability(lambda ids: ids.sum(1), V, L)


def test_no_leak_passes_what_is_right_and_finds_what_leaks(lira, gpt):
    ids = torch.randint(10, (3, 12), generator=generator(0))
    hidden = torch.rand(3, 12, generator=generator(1)) < 0.4
    masked = lambda ids, hidden: lira.denoise(ids.masked_fill(hidden, lira.config.mask_token_id)).logits
    check_no_leak(masked, ids, hidden, vocab_size=10)
    less_masked = hidden & (torch.rand(3, 12, generator=generator(2)) < 0.5)
    for leaking in (lambda ids, hidden: lira.denoise(ids).logits, lambda ids, hidden: masked(ids, less_masked)):
        with pytest.raises(ValueError, match="leak: changing them moved a logit at position .* by"): check_no_leak(leaking, ids, hidden, vocab_size=10, tolerance=1e-6)
    ids, suffix = torch.randint(3, (4, 8), generator=generator(3)), torch.arange(8).expand(4, -1) >= 5
    first = torch.arange(8).expand(4, -1) == 5
    check_no_leak(lambda ids, hidden: gpt.next_token_logits(ids), ids, suffix, read=first)
    with pytest.raises(ValueError, match="at position 5"): check_no_leak(lambda ids, hidden: gpt(ids).logits, ids, suffix, read=first)
    with pytest.raises(ValueError, match="no True"): check_no_leak(masked, ids, torch.zeros_like(suffix))
    with pytest.raises(ValueError, match="1 token"): check_no_leak(lambda ids, hidden: gpt(ids).logits, ids, suffix, vocab_size=1)


def test_a_logit_that_becomes_nothing_is_found():
    ids, hidden = all_texts(3, 2), torch.ones(9, 2, dtype=torch.bool)
    start = ids.clone()
    with pytest.raises(ValueError, match="nan"): check_no_leak(lambda ids, hidden: torch.zeros(9, 2, 3) if torch.equal(ids, start) else torch.full((9, 2, 3), math.nan), ids, hidden)
    check_no_leak(lambda ids, hidden: torch.tensor([0.0, 0.0, -math.inf]).expand(9, 2, 3), ids, hidden)


def test_a_cache_passes_and_broken_ones_do_not(gpt):
    ids = torch.randint(3, (2, 8), generator=generator(0))
    check_cache(gpt, ids)
    class Broken:
        def __init__(self, read): self.read = read
        def __call__(self, ids, cache=None): return self.read(ids, cache)
    def forgets(ids, cache): return gpt(ids)
    def drifts(ids, cache):
        held = cache.length if cache is not None else 0
        return Prediction(gpt(ids, cache).logits + held)
    for read in (forgets, drifts):
        with pytest.raises(ValueError, match="the cache changes the model: read in 8 parts"): check_cache(Broken(read), ids)
    def wrong_in_longer_parts(ids, cache):
        if cache is None or not cache.length: return gpt(ids, cache)
        prediction = gpt(ids, cache)
        return prediction if ids.shape[1] == 1 else Prediction(prediction.logits.flip(1))
    with pytest.raises(ValueError, match="the cache changes the model: read in [2-4] parts"): check_cache(Broken(wrong_in_longer_parts), ids)
    with pytest.raises(ValueError, match="1 token"): check_cache(gpt, ids[:, :1])


def test_estimates_are_held_to_the_exact_value():
    table, texts = Table(*TINY, seed=0), all_texts(*TINY)
    exact = exact_nelbo(table, texts)
    check_estimate(lambda seed: nelbo(table, texts, draws=1, seed=seed), exact)
    check_estimate(lambda seed: exact, exact, repeats=2)
    with pytest.raises(ValueError, match="biased: for text"): check_estimate(lambda seed: nelbo(table, texts, draws=2, seed=seed) + 0.5, exact)
    with pytest.raises(ValueError, match="biased"): check_estimate(lambda seed: exact * math.nan, exact, repeats=2)
    with pytest.raises(ValueError, match="repeats is 1"): check_estimate(lambda seed: exact, exact, repeats=1)
