"""Bounds and exact likelihoods by enumeration, against the truth, against what samplers write, on any batch; intervals that hold what they promise."""
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from worlds import Table, all_texts, config, generator

from shimmer.corruption import Batch
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import bits_per_byte, bootstrap_interval, check_texts, compare, duel_nll, exact_nelbo, left_to_right_nll, nelbo, nll, paired_difference
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import Prediction
from shimmer.objectives import NextToken
from shimmer.policies import ThresholdRemasking, TopK, UnmaskAction, top_positions
from shimmer.samplers import refine
from shimmer.testing import total_probability

seeds = st.integers(0, 2**32 - 1)


class World:
    "The exact conditionals of a distribution over all texts: a consistent model."
    def __init__(self, V, L, seed):
        self.texts, self.config = all_texts(V, L), config(V, L)
        self.probs = torch.rand(len(self.texts), generator=generator(seed), dtype=torch.float64) + 0.01
        self.probs /= self.probs.sum()

    def denoise(self, ids, state=None, at=None):
        V = self.config.vocab_size
        fits = ((ids[:, None] == self.texts) | (ids[:, None] == V)).all(-1) * self.probs
        return Prediction(torch.einsum("bn,nlv->blv", fits, torch.nn.functional.one_hot(self.texts, V).double()).log()).at(at)


class Recorder:
    "Knows nothing, and keeps every canvas it is shown."
    def __init__(self, V, L, pad=None): self.config, self.seen = config(V, L, pad), []

    def denoise(self, ids, state=None, at=None):
        self.seen.append(ids.clone())
        return Prediction(torch.zeros(*ids.shape, self.config.vocab_size)).at(at)


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
    model.denoise = lambda ids, state=None, at=None: Prediction(torch.tensor([0.0, 0.0, -math.inf]).expand(*ids.shape, 3)).at(at)
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


TINY = (3, 3)  # tokens, length
RULES = ("max_prob", "margin", "entropy", "left_to_right")


def threshold(tau):
    return lambda view: UnmaskAction((view.max_prob > tau) | top_positions(view.max_prob, view.masked, torch.ones_like(view.num_masked)))


class Carrier(Table):
    "A table whose answers also depend on the sum of the canvases it has seen: a model with a state of its rows."
    def denoise(self, ids, state=None, at=None):
        state = ids.double().sum(1) if state is None else state + ids.double().sum(1)
        return Prediction(self.answers[tuple(ids.T)] * (1 + state.sin())[:, None, None], state=state).at(at)


class Reader:
    "A made-up distribution for every prefix: a model that reads in order."
    def __init__(self, V, L, seed, pad=None):
        self.config = SimpleNamespace(vocab_size=V, pad_token_id=pad, max_seq_len=L)
        self.answers = [torch.randn(*[V] * i, V, generator=generator(seed + i), dtype=torch.float64) for i in range(L)]

    def next_token_logits(self, ids): return torch.stack([table[tuple(ids[:, :i].T)].expand(len(ids), -1) for i, table in enumerate(self.answers[: ids.shape[1]])], 1)


def logits_of(model, canvas): return model.denoise(canvas).logits.log_softmax(-1)


def brute_force(model, text, score, k):
    "Replay one text by hand; of equal scores the one further left comes first."
    V, L, nats = model.config.vocab_size, len(text), 0.0
    canvas = [V] * L
    while V in canvas:
        log_probs = logits_of(model, torch.tensor([canvas]))[0]
        open_ = [i for i in range(L) if canvas[i] == V]
        picked = sorted(open_, key=lambda i: (-score(log_probs[i].exp(), i), i))[:k]
        nats -= sum(log_probs[i, text[i]].item() for i in picked)
        for i in picked: canvas[i] = int(text[i])
    return nats


SCORES = {"max_prob": lambda p, i: p.max().item(), "margin": lambda p, i: (p.sort().values[-1] - p.sort().values[-2]).item(),
          "entropy": lambda p, i: (p * p.log()).sum().item(), "left_to_right": lambda p, i: -i}


@pytest.mark.parametrize("V, L", [(2, 1), (3, 3), (2, 5), (5, 2)])
def test_exact_nelbo_is_the_mean_over_orders(V, L):
    for model in (Table(V, L, seed=V), World(V, L, seed=L)):
        torch.testing.assert_close(exact_nelbo(model, all_texts(V, L), batch_size=3), by_orders(model, all_texts(V, L)).mean(0))


def test_a_bound_has_less_than_all_mass():
    assert total_probability(lambda ids: exact_nelbo(Table(3, 3, 0), ids), 3, 3) < 0.9
    assert math.isclose(total_probability(lambda ids: exact_nelbo(World(3, 3, 0), ids), 3, 3), 1)


@given(seeds, st.sampled_from([(1, 3), (2, 4), (3, 3), (4, 2), (3, 1)]))
@settings(max_examples=15)
def test_left_to_right_sums_to_one_for_both_kinds(seed, shape):
    for model in (Table(*shape, seed % 1000), Reader(*shape, seed % 1000)):
        assert math.isclose(total_probability(lambda ids: left_to_right_nll(model, ids), *shape), 1, rel_tol=1e-9)


@given(seeds, st.sampled_from([(2, 4), (3, 3), (4, 2), (3, 1)]), st.sampled_from(RULES), st.integers(1, 5))
@settings(max_examples=40)
def test_duel_sums_to_one_for_every_rule_and_number_a_call(seed, shape, rule, k):
    for model in (Table(*shape, seed % 1000), Carrier(*shape, seed % 1000)):
        assert math.isclose(total_probability(lambda ids: duel_nll(model, ids, rule, k), *shape), 1, rel_tol=1e-9)


@given(seeds, st.floats(0, 1), st.sampled_from([Table, Carrier]))
@settings(max_examples=20)
def test_a_threshold_policy_sums_to_one(seed, tau, kind):
    model = kind(*TINY, seed % 1000)
    assert math.isclose(total_probability(lambda ids: duel_nll(model, ids, threshold(tau)), *TINY), 1, rel_tol=1e-9)


def test_a_rule_may_read_a_confidence_head():
    model = Table(*TINY, seed=1)
    plain = model.denoise
    model.denoise = lambda ids, state=None, at=None: plain(ids)._replace(confidence=(ids.double().sum(1, keepdim=True) + torch.arange(3)).sin().abs()).at(at)
    by_head = lambda view: UnmaskAction(top_positions(view.confidence, view.masked, torch.ones_like(view.num_masked)))
    assert math.isclose(total_probability(lambda ids: duel_nll(model, ids, by_head), *TINY), 1)
    assert not torch.allclose(duel_nll(model, all_texts(*TINY), by_head), duel_nll(model, all_texts(*TINY)))


@pytest.mark.parametrize("seed", range(3))
def test_the_best_order_of_each_text_has_too_much_mass(seed):
    assert (-by_orders(Table(*TINY, seed), all_texts(*TINY)).min(0).values).exp().sum() > 1.2


@pytest.mark.parametrize("model", [Table(*TINY, seed=3), World(*TINY, seed=3), Table(2, 5, seed=4)], ids=["table", "world", "five"])
def test_one_at_a_time_from_left_to_right_is_the_left_to_right_likelihood(model):
    texts = all_texts(model.config.vocab_size, model.config.max_seq_len)
    torch.testing.assert_close(duel_nll(model, texts, "left_to_right"), left_to_right_nll(model, texts))
    torch.testing.assert_close(left_to_right_nll(model, texts), by_orders(model, texts)[0])


@pytest.mark.parametrize("rule", RULES + (threshold(0.9),))
def test_where_the_truth_is_known_every_order_comes_to_it(rule):
    world = World(2, 4, seed=5)
    if rule in RULES: torch.testing.assert_close(duel_nll(world, world.texts, rule), -world.probs.log())
    torch.testing.assert_close(left_to_right_nll(world, world.texts), -world.probs.log())
    assert (duel_nll(world, world.texts, rule, k=1) * world.probs).sum() > -(world.probs * world.probs.log()).sum() - 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 9])
def test_duel_is_the_replay_by_hand(rule, k):
    model, texts = Table(2, 4, seed=k), all_texts(2, 4)
    by_hand = torch.tensor([brute_force(model, text, SCORES[rule], k) for text in texts], dtype=torch.float64)
    torch.testing.assert_close(duel_nll(model, texts, rule, k), by_hand)


@pytest.mark.parametrize("policy, calls, k", [(TopK(), 3, 1), (TopK("cosine", "entropy"), 2, 2), (TopK(order="left_to_right"), 2, 2), (threshold(0.6), 3, 1), (TopK(), 1, 3)])
@pytest.mark.parametrize("kind", [Table, Carrier])
def test_it_is_what_the_sampler_writes(policy, calls, k, kind):
    V, L = TINY
    model, n = kind(V, L, seed=8), 3000
    if not hasattr(policy, "reopens"): policy.reopens = False
    written = refine(model, torch.full((n, L), V), policy, calls, temperature=1.0, seed=1).ids
    counts = torch.bincount((written * V ** torch.arange(L - 1, -1, -1)).sum(1), minlength=V**L)
    p = (-duel_nll(model, all_texts(V, L), policy, k)).exp()
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 27 + 6 * 54**0.5  # chi-square of 26 degrees


class Padded(Table):
    "Opinions on a row's real tokens alone, wherever its pads stand."
    def __init__(self, V, L, seed):
        super().__init__(V, L, seed)
        self.config = config(V, L, pad=V + 1)

    def denoise(self, ids, state=None, at=None):
        logits = torch.zeros(*ids.shape, self.config.vocab_size, dtype=torch.float64)
        for row, real, out in zip(ids, ids != self.config.pad_token_id, logits):
            packed = torch.full((self.config.max_seq_len,), self.config.mask_token_id)
            packed[: real.sum()] = row[real]
            out[real] = self.answers[tuple(packed)][: real.sum()]
        return Prediction(logits).at(at)


def test_pads_change_nothing():
    model = Padded(3, 5, seed=0)
    pad, text = model.config.pad_token_id, torch.tensor([[2, 0, 1]])
    behind, between = torch.tensor([[2, 0, 1, pad, pad]]), torch.tensor([[pad, 2, 0, pad, 1]])
    for measure in (left_to_right_nll, exact_nelbo, *(lambda m, ids, rule=rule: duel_nll(m, ids, rule) for rule in RULES)):
        whole = measure(model, text)
        torch.testing.assert_close(measure(model, behind), whole)
        torch.testing.assert_close(measure(model, between), whole)
        torch.testing.assert_close(measure(model, torch.cat([behind, torch.full_like(behind, 1), between])), torch.cat([whole, measure(model, torch.full_like(behind, 1)), whole]))


def test_a_reader_pays_for_no_pad_and_gives_it_no_mass():
    reader = Reader(4, 3, seed=0, pad=3)
    assert math.isclose(total_probability(lambda ids: left_to_right_nll(reader, ids), 3, 3), 1)
    short, padded = left_to_right_nll(reader, torch.tensor([[1, 2]])), left_to_right_nll(reader, torch.tensor([[1, 2, 3]]))
    assert torch.equal(short, padded)


def test_pads_are_impossible_on_a_canvas():
    model = Table(4, 3, seed=0)
    model.config.mask_token_id, model.config.pad_token_id = 4, 3
    for measure in (left_to_right_nll, duel_nll): assert math.isclose(total_probability(lambda ids: measure(model, ids), 3, 3), 1)


@given(seeds, st.integers(1, 6), st.integers(1, 6), st.sampled_from(RULES), st.integers(1, 4))
@settings(max_examples=20)
def test_exact_measures_do_not_depend_on_the_batch(opinionated, seed, B, batch_size, rule, k):
    ids = torch.randint(10, (B, 12), generator=generator(seed))
    ids[:, 9:] = ids[:, 9:].masked_fill(torch.rand(B, 3, generator=generator(seed)) < 0.5, 10)
    before = torch.get_rng_state()
    for measure in (left_to_right_nll, lambda *a, **o: duel_nll(*a, rule=rule, k=k, **o)):
        whole = measure(opinionated, ids)
        assert whole.shape == (B,) and whole.dtype == torch.float64 and not whole.requires_grad
        torch.testing.assert_close(measure(opinionated, ids, batch_size=batch_size), whole, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.cat([measure(opinionated, row[None]) for row in ids]), whole, rtol=1e-4, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def opinionated():
    torch.manual_seed(1)
    model = LatentCanvasModel(LatentCanvasConfig(vocab_size=11, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=12, pad_token_id=10, carry_latent=True)).eval()
    for p in model.parameters(): p.data.normal_(std=0.7)
    return model


@pytest.fixture(scope="module")
def gpt():
    torch.manual_seed(2)
    model = GPTModel(GPTConfig(vocab_size=3, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=8, dropout=0.5))
    for p in model.parameters(): p.data.normal_(std=0.7)
    return model.eval()


def test_a_gpt_has_a_likelihood(gpt):
    assert math.isclose(total_probability(lambda ids: left_to_right_nll(gpt, ids), 3, 4), 1, rel_tol=1e-5)
    texts = all_texts(3, 4)
    torch.testing.assert_close(duel_nll(gpt, texts, "left_to_right"), nll(gpt, texts))
    loss = torch.stack([NextToken()(gpt, Batch(text[None], torch.zeros(1, 5)))["loss"] for text in texts]).detach()
    torch.testing.assert_close(nll(gpt, texts, batch_size=7) / 4, loss.double(), rtol=1e-5, atol=1e-5)
    assert math.isclose(total_probability(lambda ids: nll(gpt, ids), 3, 1), 1, rel_tol=1e-5)


def test_measuring_turns_dropout_off_and_the_mode_back(gpt):
    expected = left_to_right_nll(gpt, all_texts(3, 3))
    gpt.train()
    try:
        assert torch.equal(left_to_right_nll(gpt, all_texts(3, 3)), expected) and gpt.training
        with pytest.raises(ValueError): left_to_right_nll(gpt, torch.full((1, 9), 0))
        assert gpt.training
    finally: gpt.eval()


def test_nll_is_exact_or_the_bound(gpt):
    table = Table(*TINY, seed=0)
    assert torch.equal(nll(gpt, all_texts(3, 3)), left_to_right_nll(gpt, all_texts(3, 3)))
    assert torch.equal(nll(table, all_texts(*TINY), draws=3, seed=4), nelbo(table, all_texts(*TINY), draws=3, seed=4))


def test_a_text_of_one_token():
    model, one = Table(3, 1, seed=0), all_texts(3, 1)
    truth = -logits_of(model, torch.tensor([[3]]))[0, 0]
    for measure in (nelbo, exact_nelbo, left_to_right_nll, duel_nll, nll): torch.testing.assert_close(measure(model, one), truth)


def drawn_first(view): return UnmaskAction(top_positions(view.standing_prob, view.masked, torch.ones_like(view.num_masked)))


@pytest.mark.parametrize("rule, k, message", [
    ("random", 1, "leaves the order to chance"), ("best", 1, "'best' is unknown"), ("max_prob", 0, "k is 0"), (ThresholdRemasking(), 1, "reopens positions"), (drawn_first, 1, "looks at the drawn tokens"),
    (lambda view: UnmaskAction(view.noise > 0.5), 1, "looks at noise"), (lambda view: UnmaskAction(view.masked & (view.confidence > 0)), 1, "looks at the drawn tokens"),
    (TopK(order="random"), 1, "looks at noise"), (lambda view: UnmaskAction(torch.zeros_like(view.masked)), 1, "leaves 81 positions masked after 3 calls"),
    (lambda view: UnmaskAction(view.masked, ~view.masked) if view.step else UnmaskAction(top_positions(view.max_prob, view.masked, view.num_masked - 1)), 1, "reopens 54 positions in call 2"),
])
def test_rules_without_a_likelihood_are_refused(rule, k, message):
    with pytest.raises(ValueError, match=message): duel_nll(Table(*TINY, seed=0), all_texts(*TINY), rule, k)


@pytest.mark.parametrize("rule, k", [("max_prob", 1), ("left_to_right", 2), (TopK(), 1)])
def test_a_reader_has_one_order(rule, k):
    with pytest.raises(ValueError, match="Reader reads from left to right"): duel_nll(Reader(3, 3, seed=0), all_texts(3, 3), rule, k)


def test_a_reader_has_no_bound_and_no_masks():
    for measure in (nelbo, exact_nelbo):
        with pytest.raises(ValueError, match="fills no holes"): measure(Reader(3, 3, seed=0), all_texts(3, 3))


@pytest.mark.parametrize("measure", [nelbo, exact_nelbo, left_to_right_nll, duel_nll, nll])
@pytest.mark.parametrize("ids, message", [
    (torch.tensor([[0, 4]]), "mask token 4"), (torch.tensor([[0, 6]]), "token 6, the model knows 0 to 3"), (torch.tensor([[-1, 0]]), "token -1"),
    (torch.zeros(1, 9, dtype=torch.long), "exceed max_seq_len 8"), (torch.zeros(1, 0, dtype=torch.long), r"shape \(1, 0\)"), (torch.tensor([[5, 5]]), "row 0 of ids is nothing but pads"), (torch.zeros(1, 2), "type torch.float32"),
])
def test_every_measure_refuses_what_has_no_likelihood(measure, ids, message):
    model = Recorder(4, 8, pad=5)
    with pytest.raises(ValueError, match=message): measure(model, ids)
    assert not model.seen
    reader = Reader(4, 8, seed=0, pad=5)
    reader.config.mask_token_id = 4
    with pytest.raises(ValueError, match=message): left_to_right_nll(reader, ids)


def test_numbers_that_make_no_sense_are_refused():
    model, texts = Table(*TINY, seed=0), all_texts(*TINY)
    for measure in (nelbo, exact_nelbo, left_to_right_nll, duel_nll, nll):
        with pytest.raises(ValueError, match="batch_size is 0"): measure(model, texts, batch_size=0)
    with pytest.raises(ValueError, match="13 tokens and so 8,191 masks"): exact_nelbo(Recorder(4, 20), torch.zeros(1, 13, dtype=torch.long))


@given(seeds, st.integers(2, 30), st.booleans())
@settings(max_examples=30)
def test_a_bootstrap_interval_is_around_the_value(seed, B, sized):
    nats = torch.rand(B, generator=generator(seed), dtype=torch.float64) * 9
    sizes = torch.randint(1, 9, (B,), generator=generator(seed)) if sized else None
    found = bootstrap_interval(nats, sizes, resamples=200, seed=seed)
    assert found.value == pytest.approx((nats.sum() / (sizes.sum() if sized else B)).item())
    ratios = nats / (sizes if sized else 1)
    assert ratios.min() - 1e-9 <= found.low <= found.high <= ratios.max() + 1e-9
    assert found == bootstrap_interval(nats, sizes, resamples=200, seed=seed)
    wider, scaled = bootstrap_interval(nats, sizes, resamples=200, seed=seed, level=0.99), bootstrap_interval(nats * 2, sizes, resamples=200, seed=seed)
    assert wider.low <= found.low and wider.high >= found.high and scaled == pytest.approx([2 * v for v in found])


@pytest.mark.parametrize("sized", [False, True])
def test_ninety_five_of_a_hundred_intervals_hold_the_truth(sized):
    g, held = generator(0), 0
    for _ in range(300):
        sizes = torch.randint(1, 5, (60,), generator=g).double()
        nats = 2 * sizes + torch.randn(60, generator=g, dtype=torch.float64) * sizes
        held += (found := bootstrap_interval(nats, sizes if sized else None, resamples=300)).low < (2 if sized else 5) < found.high
    assert 0.90 <= held / 300 <= 0.985


def test_an_interval_over_seeds_and_texts():
    texts, g = torch.randn(40, generator=generator(0)).double(), generator(1)
    assert bootstrap_interval(texts[None]) == bootstrap_interval(texts)
    same = bootstrap_interval(texts.expand(5, -1))  # seeds that agree add nothing
    assert same == pytest.approx(bootstrap_interval(texts))
    sizes = torch.randint(1, 9, (40,), generator=g)
    assert bootstrap_interval(texts.expand(5, -1), sizes) == pytest.approx(bootstrap_interval(texts, sizes))
    held = 0
    for _ in range(200):  # seeds differ and texts differ, the same way for all seeds: the mean over both is 0
        values = torch.randn(10, 1, generator=g) + torch.randn(1, 60, generator=g) + torch.randn(10, 60, generator=g)
        held += (found := bootstrap_interval(values, resamples=300)).low < 0 < found.high
    assert 0.82 <= held / 200 <= 0.98


def test_pairs_make_a_narrower_interval():
    common, noise = torch.randn(50, generator=generator(0)) * 10, torch.randn(2, 50, generator=generator(1))
    a, b = common + noise[0] + 1, common + noise[1]
    paired, torn = paired_difference(a, b), paired_difference(a, b.roll(7))
    assert paired.value == pytest.approx(torn.value, abs=1e-4) and paired.high - paired.low < (torn.high - torn.low) / 4
    assert paired_difference(a, b, seed=3) == pytest.approx([-v for v in (lambda i: (i.value, i.high, i.low))(paired_difference(b, a, seed=3))])


def test_compare_hides_the_same_tokens():
    table = Table(*TINY, seed=0)
    assert compare(table, table, all_texts(*TINY), draws=2) == (0, 0, 0)
    better = compare(World(*TINY, seed=1), table, all_texts(*TINY), measure=duel_nll, rule="entropy", k=2)
    assert better.value == pytest.approx((duel_nll(World(*TINY, seed=1), all_texts(*TINY), "entropy", 2) - duel_nll(table, all_texts(*TINY), "entropy", 2)).mean().item())
    canvas_and_reader = compare(Reader(*TINY, seed=0), table, all_texts(*TINY), measure=left_to_right_nll)
    assert canvas_and_reader.low <= canvas_and_reader.value <= canvas_and_reader.high


@pytest.mark.parametrize("call, message", [
    (lambda: bootstrap_interval(torch.zeros(1)), "at least 2 texts"), (lambda: bootstrap_interval(torch.zeros(2, 1)), "at least 2 texts"), (lambda: bootstrap_interval(torch.zeros(1, 2, 2)), "at least 2 texts"), (lambda: bootstrap_interval(torch.zeros(2, 3), [1, 2]), "one size a text"), (lambda: bootstrap_interval(torch.zeros(3), [1, 2]), "one size a text"),
    (lambda: bootstrap_interval(torch.tensor([1, math.inf])), "holds inf"), (lambda: bootstrap_interval(torch.tensor([1, math.nan])), "holds nan"), (lambda: bootstrap_interval(torch.zeros(2), [1, 0]), "sizes holds 0"),
    (lambda: bootstrap_interval(torch.zeros(2), resamples=0), "resamples is 0"), (lambda: bootstrap_interval(torch.zeros(2), level=1.0), "level is 1.0"), (lambda: bootstrap_interval(torch.zeros(2), level=95), "level is 95"),
    (lambda: paired_difference(torch.zeros(3), torch.zeros(2)), "same texts in the same order"), (lambda: compare(Table(2, 3, 0), Table(3, 3, 0), all_texts(2, 3)), "vocab_size is 2 in one model and 3"),
    (lambda: compare(Reader(3, 3, 0, pad=2), Table(3, 3, 0), all_texts(2, 3)), "pad_token_id is 2 in one model and None"), (lambda: compare(Table(3, 1, 0), Table(3, 1, 1), all_texts(3, 1)[:1]), "at least 2 texts"),
])
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message): call()
