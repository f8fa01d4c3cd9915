"""Masks of an exact size, ratios that cover their range, pads never masked, losses that average to the bound and don't depend on how a batch is split."""
import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from shimmer.corruption import Mask, check_mask_ratio, draw_noise, mask_tokens, masked_loss


def generator(seed): return torch.Generator().manual_seed(seed)


seeds = st.integers(0, 2**32 - 1)
ratios = st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(sorted).map(tuple)


@given(seeds, st.integers(1, 64), st.integers(1, 20))
def test_noise_is_below_one_and_its_ratios_fill_every_stratum_once(seed, B, L):
    noise = draw_noise(B, L, generator(seed))
    assert noise.shape == (B, 1 + L) and noise.min() >= 0 and noise.max() < 1
    shift = (noise[:, 0].double() * B).sort().values - torch.arange(B)
    assert shift.min() > -1e-5 and shift.max() < 1 + 1e-5 and shift.max() - shift.min() < 1e-4
    assert torch.equal(noise, draw_noise(B, L, generator(seed)))


def test_noise_stays_below_one_where_the_shift_rounds_up(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 1 - 2**-24))
    assert draw_noise(64, 3, generator(0)).max() < 1


def test_each_row_s_ratio_is_uniform_and_its_order_fair():
    "Over many batches every row meets every ratio, and every position is hidden equally often."
    noise = torch.stack([draw_noise(4, 5, generator(seed)) for seed in range(4000)])
    assert ((noise[:, :, 0].mean(0) - 0.5).abs() < 0.02).all() and ((noise[:, :, 0].var(0) - 1 / 12).abs() < 0.005).all()
    hidden = mask_tokens(noise.flatten(0, 1), (0.4, 0.4)).masked
    assert (hidden.sum(1) == 2).all() and ((hidden.float().mean(0) - 0.4).abs() < 0.02).all()


@given(seeds, st.integers(1, 512), st.data())
@settings(max_examples=300)
def test_a_ratio_of_k_in_L_hides_k(seed, L, data):
    k = data.draw(st.integers(1, L))
    mask = mask_tokens(torch.rand(2, 1 + L, generator=generator(seed)), (k / L, k / L))
    assert mask.masked.sum(1).tolist() == [k, k]
    assert torch.equal(mask.ratio, mask.masked.float().sum(1) / L)


@pytest.mark.parametrize("L", [*range(1, 40), 100, 200, 511, 512])
def test_every_count_of_a_length_comes_out(L):
    noise = torch.rand(L, 1 + L, generator=generator(L))
    for k in range(1, L + 1) if L < 40 else range(1, L + 1, 17):
        assert mask_tokens(noise[:1], (k / L, k / L)).masked.sum() == k
    middles = (torch.arange(L) + 0.5) / L
    noise[:, 0] = middles
    assert mask_tokens(noise, (1e-9, 1.0)).masked.sum(1).tolist() == list(range(1, L + 1))


@given(seeds, ratios, st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_counts_are_exact_and_pads_never_masked(seed, mask_ratio, lengths):
    low, high = mask_ratio
    real = torch.stack([torch.randperm(12, generator=generator(seed + i)) < n for i, n in enumerate(lengths)])
    noise = draw_noise(len(lengths), 12, generator(seed))
    mask = mask_tokens(noise, mask_ratio, real)
    assert not (mask.masked & ~real).any()
    for n, count, ratio, u in zip(lengths, mask.masked.sum(1).tolist(), mask.ratio.tolist(), noise[:, 0].tolist()):
        wanted = (low + (high - low) * u) * n
        least, most = (min(n, max(1, math.ceil(wanted + slack))) for slack in (-2e-4, 1e-5))
        assert least <= count <= most
        assert math.isclose(ratio, count / max(n, 1), abs_tol=1e-6)


@given(seeds, ratios, st.integers(2, 12), st.data())
def test_masks_of_a_part_are_the_part_of_the_masks(seed, mask_ratio, B, data):
    noise, real = draw_noise(B, 9, generator(seed)), torch.rand(B, 9, generator=generator(seed)) < 0.8
    cut = data.draw(st.integers(1, B - 1))
    whole = mask_tokens(noise, mask_ratio, real)
    for rows in (slice(0, cut), slice(cut, B)):
        part = mask_tokens(noise[rows], mask_ratio, real[rows])
        assert torch.equal(part.masked, whole.masked[rows]) and torch.equal(part.ratio, whole.ratio[rows])


@pytest.mark.parametrize("mask_ratio", [(0.0, 1.0), (-0.1, 0.5), (0.5, 0.4), (0.5, 1.01), (float("nan"), 0.5), (0.5, float("nan"))])
def test_ratios_outside_their_range_are_refused(mask_ratio):
    with pytest.raises(ValueError, match=r"within \(0, 1\]"): check_mask_ratio(mask_ratio)
    with pytest.raises(ValueError, match="give 0 < low <= high <= 1"): mask_tokens(torch.rand(2, 5), mask_ratio)


def table(seed, V, L):
    "An arbitrary model: a made-up distribution for every canvas and position; id V is the mask."
    return torch.randn(*[V + 1] * L, L, V, generator=generator(seed), dtype=torch.float64).mul(2).log_softmax(-1)


def cost(model, text, masked):
    L, V = model.shape[-2:]
    return -model[tuple(torch.where(masked, V, text))][range(L), text]


def all_masks(L): return [torch.tensor(bits, dtype=torch.bool) for bits in itertools.product([0, 1], repeat=L) if any(bits)]


def nelbo_by_orders(model, text):
    L, total = len(text), 0.0
    for order in itertools.permutations(range(L)):
        masked = torch.ones(L, dtype=torch.bool)
        for i in order:
            total += cost(model, text, masked)[i].item()
            masked[i] = False
    return total / math.factorial(L)


@given(seeds, st.sampled_from([(2, 1), (2, 2), (3, 3), (2, 4)]), st.data())
@settings(max_examples=25)
def test_the_bound_averages_to_nelbo_and_mean_over_t_does_not(seed, shape, data):
    V, L = shape
    model, text = table(seed, V, L), torch.tensor(data.draw(st.lists(st.integers(0, V - 1), min_size=L, max_size=L)))
    nelbo = nelbo_by_orders(model, text)
    expected = {"bound": 0.0, "mean_over_t": 0.0}
    for m in all_masks(L):
        l = int(m.sum())
        for weighting in expected:
            loss = masked_loss(cost(model, text, m)[m], Mask(m[None], torch.tensor([l / L], dtype=torch.float64)), weighting)
            expected[weighting] += loss.item() / (L * math.comb(L, l))
    assert math.isclose(expected["bound"], nelbo / L, rel_tol=1e-6)
    if L > 1: assert expected["mean_over_t"] > nelbo / L * 1.001


def test_drawn_masks_average_to_nelbo():
    model, text, B = table(3, 3, 3), torch.tensor([2, 0, 1]), 60_000
    mask = mask_tokens(draw_noise(B, 3, generator(0)), (1e-6, 1.0))
    canvas = torch.where(mask.masked, 3, text)
    nats = -model[tuple(canvas.T)].gather(2, text.expand(B, 3)[..., None])[..., 0]
    assert abs(masked_loss(nats[mask.masked], mask).item() - nelbo_by_orders(model, text) / 3) < 0.02


@given(seeds, st.integers(1, 8), st.integers(1, 12))
def test_loss_is_sum_over_tL_and_a_mean_of_rows(seed, B, L):
    nats = torch.rand(B, L, generator=generator(seed), dtype=torch.float64)
    mask = mask_tokens(draw_noise(B, L, generator(seed)), (0.05, 1.0))
    rows = torch.stack([n[m].sum() / (t * L) for n, m, t in zip(nats, mask.masked, mask.ratio)])
    assert math.isclose(masked_loss(nats[mask.masked], mask), rows.mean(), rel_tol=1e-5)
    assert math.isclose(masked_loss(nats[mask.masked], mask, "mean_over_t"), (rows / mask.ratio).mean(), rel_tol=1e-5)
    assert math.isclose(masked_loss(nats[mask.masked].float(), mask), rows.mean(), rel_tol=1e-5)


@given(seeds, st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_loss_and_gradient_do_not_depend_on_the_split(seed, parts):
    B, L, V = 12, 7, 5
    logits = torch.randn(B, L, V, generator=generator(seed), dtype=torch.float64, requires_grad=True)
    ids, noise = torch.randint(V, (B, L), generator=generator(seed)), draw_noise(B, L, generator(seed))
    real = torch.rand(B, L, generator=generator(seed)) < 0.7
    assume(real.any(1).all())

    def run(parts):
        logits.grad, total = None, 0.0
        for rows in torch.arange(B).chunk(parts):
            mask = mask_tokens(noise[rows], (0.1, 1.0), real[rows])
            nats = torch.nn.functional.cross_entropy(logits[rows][mask.masked], ids[rows][mask.masked], reduction="none")
            loss = masked_loss(nats, mask) / parts
            loss.backward()
            total += loss.item()
        return total, logits.grad

    (whole, whole_grad), (split, split_grad) = run(1), run(parts)
    assert math.isclose(whole, split, rel_tol=1e-6)
    torch.testing.assert_close(whole_grad, split_grad, atol=1e-7, rtol=1e-5)
