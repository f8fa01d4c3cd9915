"""The bound by enumeration, against the truth, on any batch: unbiased, reproducible, blind to pads; and bits over the right bytes."""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from shimmer.layers import Prediction
from shimmer.likelihood import bits_per_byte, check_texts, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel

seeds = st.integers(0, 2**32 - 1)


def generator(seed): return torch.Generator().manual_seed(seed)


def config(V, L, pad=None): return SimpleNamespace(vocab_size=V, mask_token_id=V, pad_token_id=pad, max_seq_len=L)


def all_texts(V, L): return torch.tensor(list(itertools.product(range(V), repeat=L)))


class Table:
    "A made-up distribution for every canvas and position: an inconsistent model."
    def __init__(self, V, L, seed):
        self.answers = torch.randn(*[V + 1] * L, L, V, generator=generator(seed), dtype=torch.float64)
        self.config = config(V, L)

    def denoise(self, ids, state=None): return Prediction(self.answers[tuple(ids.T)])


class World:
    "The exact conditionals of a distribution over all texts: a consistent model."
    def __init__(self, V, L, seed):
        self.texts, self.config = all_texts(V, L), config(V, L)
        self.probs = torch.rand(len(self.texts), generator=generator(seed), dtype=torch.float64) + 0.01
        self.probs /= self.probs.sum()

    def denoise(self, ids, state=None):
        V = self.config.vocab_size
        fits = ((ids[:, None] == self.texts) | (ids[:, None] == V)).all(-1) * self.probs
        return Prediction(torch.einsum("bn,nlv->blv", fits, torch.nn.functional.one_hot(self.texts, V).double()).log())


class Recorder:
    "Knows nothing, and keeps every canvas it is shown."
    def __init__(self, V, L, pad=None): self.config, self.seen = config(V, L, pad), []

    def denoise(self, ids, state=None):
        self.seen.append(ids.clone())
        return Prediction(torch.zeros(*ids.shape, self.config.vocab_size))


def costs(model, texts, masked):
    logits = model.denoise(texts.masked_fill(masked, model.config.mask_token_id)).logits
    return -logits.log_softmax(-1).gather(2, texts[..., None])[..., 0]


def by_orders(model, texts):
    "Nats along every order, [L!, N]."
    L, rows = texts.shape[1], []
    for order in itertools.permutations(range(L)):
        total, masked = torch.zeros(len(texts), dtype=torch.float64), torch.ones(L, dtype=torch.bool)
        for i in order:
            total += costs(model, texts, masked)[:, i]
            masked[i] = False
        rows.append(total)
    return torch.stack(rows)


def masked_sums(model, texts):
    masks = [torch.tensor(bits) for bits in itertools.product([False, True], repeat=texts.shape[1]) if any(bits)]
    return [(int(m.sum()), costs(model, texts, m)[:, m].sum(1)) for m in masks]


@pytest.mark.parametrize("V, L", [(2, 1), (4, 2), (3, 3), (2, 4), (2, 5)])
def test_orders_counts_and_ratios_agree(V, L):
    model, texts = Table(V, L, seed=V + L), all_texts(V, L)
    sums = masked_sums(model, texts)
    orders = by_orders(model, texts).mean(0)
    counts = sum(s / (l * math.comb(L, l)) for l, s in sums)
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    ratios = sum(s * (t ** (l - 1) * (1 - t) ** (L - l)).mean() for l, s in sums)
    torch.testing.assert_close(orders, counts)
    torch.testing.assert_close(orders, ratios, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_nelbo_bounds_the_random_order_sampler(seed):
    nats = by_orders(Table(3, 3, seed), all_texts(3, 3))
    sampler = (-nats).exp().mean(0)
    assert math.isclose(sampler.sum(), 1) and (nats.mean(0) > -sampler.log()).all()


@pytest.mark.parametrize("V, L", [(2, 2), (3, 3), (2, 4)])
def test_a_model_that_knows_the_truth_has_no_gap(V, L):
    world = World(V, L, seed=L)
    nats = by_orders(world, world.texts)
    torch.testing.assert_close(nats, -world.probs.log().expand_as(nats))


def estimate(model, texts, copies, draws, seed=0):
    nats = nelbo(model, texts.repeat(copies, 1), draws=draws, seed=seed, batch_size=4096).view(copies, -1)
    return nats.mean(0), nats.std(0) / copies**0.5


@pytest.mark.parametrize("model", [Table(3, 3, seed=5), World(3, 3, seed=6), Table(2, 4, seed=7)], ids=["table", "world", "four"])
@pytest.mark.parametrize("draws", [1, 4])
def test_the_estimate_is_unbiased(model, draws):
    texts = all_texts(model.config.vocab_size, model.config.max_seq_len)
    mean, error = estimate(model, texts, copies=1500, draws=draws)
    assert ((mean - by_orders(model, texts).mean(0)).abs() < 5 * error + 1e-5).all()
    assert (error < 0.15).all()


def test_the_estimate_comes_to_the_truth():
    world = World(3, 3, seed=1)
    mean, error = estimate(world, world.texts, copies=1500, draws=3)
    assert ((mean + world.probs.log()).abs() < 5 * error + 1e-5).all()


def test_stratified_counts_have_less_spread():
    "Against drawing l independently, which is what a single draw for each of many copies does."
    model, texts = Table(3, 3, seed=2), all_texts(3, 3)
    stratified = nelbo(model, texts.repeat(800, 1), draws=6, batch_size=4096).view(800, -1).var(0)
    independent = nelbo(model, texts.repeat(800 * 6, 1), draws=1, batch_size=8192).view(800, 6, -1).mean(1).var(0)
    assert stratified.mean() < 0.9 * independent.mean()


@given(seeds, st.integers(1, 7), st.integers(1, 5))
@settings(max_examples=30)
def test_every_count_once_in_L_draws(seed, L, B):
    model = Recorder(4, L)
    nelbo(model, torch.randint(4, (B, L), generator=generator(seed)), draws=L, seed=seed)
    counts = (torch.stack(model.seen) == 4).sum(-1)  # [draws, B]
    assert (counts == torch.arange(1, L + 1)[:, None]).all()


@given(seeds, st.lists(st.integers(1, 8), min_size=1, max_size=6), st.integers(1, 5))
@settings(max_examples=40)
def test_pads_are_neither_hidden_nor_counted(seed, lengths, draws):
    V, L, pad = 5, 8, 6
    real = torch.stack([torch.randperm(L, generator=generator(seed + i)) < n for i, n in enumerate(lengths)])
    ids = torch.randint(V, (len(lengths), L), generator=generator(seed)).masked_fill(~real, pad)
    model = Recorder(V, L, pad)
    nats = nelbo(model, ids, draws=draws, seed=seed)
    assert torch.allclose(nats, torch.tensor(lengths, dtype=torch.float64) * math.log(V))
    for canvas in model.seen:
        assert torch.equal(canvas == pad, ids == pad)
        assert torch.equal(canvas[canvas != V], ids[canvas != V]) and ((canvas == V).sum(1) >= 1).all()


@pytest.fixture(scope="module")
def lira():
    torch.manual_seed(0)
    return LatentCanvasModel(LatentCanvasConfig(vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=12, pad_token_id=10)).eval()


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=25)
def test_batch_size_and_repetition_change_nothing(lira, seed, B, batch_size, draws):
    ids = torch.randint(10, (B, 12), generator=generator(seed))
    ids[:, 9:] = ids[:, 9:].masked_fill(torch.rand(B, 3, generator=generator(seed)) < 0.5, 10)
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    whole = nelbo(lira, ids, draws=draws, seed=seed)
    assert torch.equal(torch.get_rng_state(), before) and whole.shape == (B,) and whole.dtype == torch.float64 and not whole.requires_grad
    assert torch.equal(whole, nelbo(lira, ids, draws=draws, seed=seed))
    torch.testing.assert_close(whole, nelbo(lira, ids, draws=draws, seed=seed, batch_size=batch_size), rtol=1e-5, atol=1e-5)


def test_another_seed_draws_other_masks(lira):
    ids = torch.randint(10, (4, 12), generator=generator(0))
    lira_like = Table(2, 4, seed=0)
    assert not torch.equal(nelbo(lira, ids, draws=2, seed=0), nelbo(lira, ids, draws=2, seed=1))
    assert not torch.equal(nelbo(lira_like, all_texts(2, 4), draws=1, seed=0), nelbo(lira_like, all_texts(2, 4), draws=1, seed=1))


def test_an_impossible_token_costs_infinitely_much():
    model = Recorder(3, 2)
    model.denoise = lambda ids, state=None: Prediction(torch.tensor([0.0, 0.0, -math.inf]).expand(*ids.shape, 3))
    assert nelbo(model, torch.tensor([[0, 1], [0, 2]]), draws=2).tolist() == [pytest.approx(2 * math.log(2)), math.inf]


@pytest.mark.parametrize("ids, rule", [
    (torch.tensor([[0, 4]]), "mask token 4"),
    (torch.zeros(1, 9, dtype=torch.long), "9 tokens exceed max_seq_len 8"),
    (torch.zeros(3, dtype=torch.long), r"shape \(3,\)"),
    (torch.zeros(0, 3, dtype=torch.long), r"shape \(0, 3\)"),
    (torch.zeros(2, 0, dtype=torch.long), r"shape \(2, 0\)"),
    (torch.tensor([[1, 2], [5, 5]]), "row 1 of ids is nothing but pads"),
])
def test_what_has_no_likelihood_is_refused(ids, rule):
    model = Recorder(4, 8, pad=5)
    with pytest.raises(ValueError, match=rule): check_texts(model, ids)
    with pytest.raises(ValueError, match=rule): nelbo(model, ids)
    assert not model.seen


def test_zero_draws_are_refused():
    with pytest.raises(ValueError, match="draws is 0"): nelbo(Recorder(4, 8), torch.zeros(1, 2, dtype=torch.long), draws=0)


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.floats(0, 1e4))
def test_bits_per_byte_counts_the_bytes_of_all_texts(texts, nats):
    size = len("".join(texts).encode("utf-8", "surrogatepass"))
    if not size:
        with pytest.raises(ValueError, match="0 bytes"): bits_per_byte(nats, texts)
        return
    assert math.isclose(bits_per_byte(nats, texts), nats / math.log(2) / size, abs_tol=1e-12)
    split = torch.full((len(texts),), nats / len(texts), dtype=torch.float64)
    assert math.isclose(bits_per_byte(split, texts), bits_per_byte(nats, "".join(texts)), rel_tol=1e-9, abs_tol=1e-12)


def test_a_byte_of_256_values_has_eight_bits():
    assert math.isclose(bits_per_byte(math.log(256), "a"), 8)
    assert math.isclose(bits_per_byte(torch.tensor([math.log(256)] * 3), ["é", "x"]), 8, rel_tol=1e-6)
