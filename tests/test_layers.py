"""Attention against naive float64, and caches and masks that change nothing."""
import math
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from shimmer.layers import Attention, KVCache, SwiGLU, TransformerBlock, attend, attention_mask, rotary_angles, rotate

HEAD_DIM = 4


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(seed, num_layers=2, hidden_size=8, **kwargs):
    "A small stack in float64, its weights a function of the seed."
    layers = nn.ModuleList(TransformerBlock(hidden_size, hidden_size // HEAD_DIM, **kwargs) for _ in range(num_layers)).double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layers.parameters(): p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.4 + (p.ndim == 1))
    return layers


def read(layers, x, offset=0, cache=None, **attention):
    rotary = rotary_angles(x.shape[1], HEAD_DIM, offset)
    for i, layer in enumerate(layers): x = layer(x, rotary, cache=cache, layer=i, **attention)
    return x


def close(a, b, atol=1e-9): torch.testing.assert_close(a, b, atol=atol, rtol=0)


@st.composite
def batches(draw):
    "Rows of unequal length: their lengths, and how their columns are cut into pieces."
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    cuts = draw(st.sets(st.integers(1, max(lengths) - 1))) if max(lengths) > 1 else set()
    edges = [0, *sorted(cuts), max(lengths)]
    return lengths, [b - a for a, b in zip(edges, edges[1:])]


# rotary positions

@given(st.integers(0, 99), st.integers(1, 6), st.integers(0, 200), st.sampled_from([2, 4, 10]), st.sampled_from([100.0, 10_000.0]))
def test_rotation_is_multiplication_by_a_complex_number(seed, length, offset, head_dim, base):
    x = normal(seed, 2, 3, length, head_dim)
    theta = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turned = torch.complex(*x.chunk(2, -1)) * torch.exp(1j * torch.arange(offset, offset + length)[:, None] * theta)
    close(rotate(x, *rotary_angles(length, head_dim, offset, base)), torch.cat([turned.real, turned.imag], -1), atol=2e-4)


@given(st.integers(0, 99), st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_scores_depend_on_distance_only(seed, m, n, shift):
    q, k = normal(seed, 2, 1, 1, 1, 8)
    score = lambda m, n: (rotate(q, *rotary_angles(1, 8, m)) * rotate(k, *rotary_angles(1, 8, n))).sum()
    close(score(m, n), score(m + shift, n + shift), atol=2e-3)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=4), st.integers(1, 5))
def test_each_row_has_its_own_offset(offsets, length):
    cos, sin = rotary_angles(length, 6, torch.tensor(offsets))
    assert cos.shape == (len(offsets), 1, length, 3)
    for row, offset in enumerate(offsets):
        assert torch.equal(cos[row, 0], rotary_angles(length, 6, offset)[0]) and torch.equal(sin[row, 0], rotary_angles(length, 6, offset)[1])


def test_angles_of_an_odd_head_are_refused():
    with pytest.raises(ValueError, match="head_dim is 5.*make it even"): rotary_angles(3, 5)


def test_rotation_keeps_the_type_and_works_in_float32():
    x = torch.randn(1, 1, 64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y = rotate(x, *rotary_angles(64, 8))
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rotate(x.double(), *rotary_angles(64, 8)).float().bfloat16())


# who attends to whom

@given(st.integers(1, 6), st.integers(0, 6), st.booleans(), st.data())
def test_the_mask_says_exactly_who_may_attend_to_whom(new, held, causal, data):
    keys = new + held
    real = data.draw(st.none() | st.lists(st.booleans(), min_size=keys, max_size=keys))
    mask = attention_mask(new, keys, None if real is None else torch.tensor([real]), causal)
    allowed = [[(not causal or j <= held + i) and (real is None or real[j]) for j in range(keys)] for i in range(new)]
    expected = torch.tensor([row if any(row) else [True] * keys for row in allowed])
    if mask is None: assert expected.all()
    else: assert torch.equal(mask.expand(1, 1, new, keys)[0, 0], expected)


@pytest.mark.parametrize("mask", [torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4), torch.ones(1, 3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)])
def test_masks_of_another_type_or_shape_are_refused(mask):
    with pytest.raises(ValueError, match="the mask (is|has).*: pass"): Attention(8, 2)(torch.zeros(1, 4, 8), rotary_angles(4, 4), mask=mask)


def naive_attention(layer, x, allowed, offset):
    "One text, one query at a time, straight from the definitions; [L, D]."
    D, H = x.shape[-1], layer.num_heads
    d, out = D // H, torch.zeros_like(x)
    theta = 10_000.0 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turn = lambda z, position: torch.complex(*z.chunk(2)) * torch.exp(1j * (position + offset) * theta)
    norm = lambda module, z: z if module is None else z / (z.pow(2).mean() + torch.finfo(z.dtype).eps).sqrt() * module.weight
    for i in range(len(x)):
        for h in range(H):
            part = lambda t, j: layer.qkv.weight[t * D + h * d:t * D + (h + 1) * d] @ x[j]
            seen = [j for j in range(len(x)) if allowed(i, j)]
            query = turn(norm(layer.q_norm, part(0, i)), i)
            scores = torch.stack([(query.conj() * turn(norm(layer.k_norm, part(1, j)), j)).real.sum() / math.sqrt(d) for j in seen])
            weight = scores.exp() / scores.exp().sum()
            out[i, h * d:(h + 1) * d] = sum(w * part(2, j) for w, j in zip(weight, seen))
    return out @ layer.out.weight.T


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(-3, 9))
def test_attention_equals_its_definition(seed, length, causal, qk_norm, offset):
    layer, x = blocks(seed, 1, qk_norm=qk_norm)[0].attention, normal(seed + 1, 2, length, 8)
    y = layer(x, rotary_angles(length, HEAD_DIM, offset), causal=causal)
    for row in range(2): close(y[row], naive_attention(layer, x[row], lambda i, j: not causal or j <= i, offset), atol=1e-5)


@given(st.integers(0, 99), batches(), st.booleans(), st.booleans())
def test_cached_equals_uncached_in_any_pieces_with_any_left_padding(seed, batch, qk_norm, own_offsets):
    (lengths, sizes), layers = batch, blocks(seed, qk_norm=qk_norm)
    L, cache, out = max(lengths), KVCache(), []
    pads = L - torch.tensor(lengths)
    x, real = normal(seed + 1, len(lengths), L, 8), torch.arange(L) >= pads[:, None]
    shift = -pads if own_offsets else 17
    for piece in x.split(sizes, 1):
        end = cache.length + piece.shape[1]
        out.append(read(layers, piece, cache.length + shift, cache, mask=real[:, :end], causal=True))
        assert cache.length == end
    cached, whole = torch.cat(out, 1), read(layers, x, shift, mask=real, causal=True)
    close(cached[real], whole[real])
    assert cached.isfinite().all() and whole.isfinite().all()
    for row, p in enumerate(pads.tolist()): close(cached[row, p:], read(layers, x[row:row + 1, p:], causal=True)[0], atol=1e-5)


@given(st.integers(0, 99), batches())
def test_cached_equals_uncached_without_a_mask(seed, batch):
    (lengths, sizes), layers, cache = batch, blocks(seed), KVCache()
    x = normal(seed + 1, 2, max(lengths), 8)
    out = [read(layers, piece, cache.length, cache, causal=True) for piece in x.split(sizes, 1)]
    close(torch.cat(out, 1), read(layers, x, causal=True))


@given(st.integers(0, 99), st.integers(2, 7), st.data())
def test_no_output_moves_when_a_later_token_changes(seed, length, data):
    at, layers = data.draw(st.integers(0, length - 1)), blocks(seed)
    x = normal(seed + 1, 1, length, 8)
    changed = x.clone()
    changed[0, at] = normal(seed + 2, 8)
    before, after = read(layers, x, causal=True), read(layers, changed, causal=True)
    close(before[:, :at], after[:, :at], atol=1e-12)
    assert (before[:, at] != after[:, at]).any()
    assert (read(layers, x) != read(layers, changed)).any(-1).all(), "bidirectional outputs all move"


@given(st.integers(0, 99), batches(), st.booleans(), st.booleans())
def test_padding_changes_nothing(seed, batch, causal, left):
    (lengths, _), layers = batch, blocks(seed)
    L = max(lengths) + 2
    pads = L - torch.tensor(lengths)
    x = normal(seed + 1, len(lengths), L, 8)
    real = torch.arange(L) >= pads[:, None] if left else torch.arange(L) < L - pads[:, None]
    y = read(layers, x, -pads if left else 0, mask=real, causal=causal)
    junk = torch.where(real[..., None], x, normal(seed + 2, len(lengths), L, 8))
    close(y[real], read(layers, junk, -pads if left else 0, mask=real, causal=causal)[real], atol=1e-12)
    for row in range(len(lengths)): close(y[row][real[row]], read(layers, x[row:row + 1, real[row]], causal=causal)[0], atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_of_pads_alone_is_finite_with_finite_gradients(causal):
    layers, x = blocks(0), normal(1, 2, 4, 8).requires_grad_()
    real = torch.tensor([[True] * 4, [False] * 4])
    read(layers, x, mask=real, causal=causal).pow(2).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in layers.parameters())


@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 3))
def test_a_pattern_of_ones_own(seed, blocks_of_text, length):
    "Block-causal with blocks of one token is causal; one block alone is bidirectional."
    layers, L = blocks(seed), blocks_of_text * length
    x, block = normal(seed + 1, 1, L, 8), torch.arange(L) // length
    y = read(layers, x, mask=(block[:, None] >= block)[None, None])
    if length == 1: close(y, read(layers, x, causal=True))
    if blocks_of_text == 1: close(y, read(layers, x))
    close(y[:, :length], read(layers, x[:, :length]))


@given(st.integers(0, 99), st.floats(0.1, 1e3))
def test_query_key_normalisation_bounds_the_logits(seed, scale):
    layer, x = blocks(seed, 1, qk_norm=True)[0].attention, scale * normal(seed + 1, 1, 5, 8)
    nn.init.ones_(layer.q_norm.weight), nn.init.ones_(layer.k_norm.weight)
    cache = KVCache()
    layer(x, rotary_angles(5, HEAD_DIM), cache=cache)
    assert (cache.layers[0][0].norm(dim=-1) <= math.sqrt(HEAD_DIM) * (1 + 1e-6)).all()


def test_mixed_precision_runs_without_a_warning_and_stays_near():
    layer = TransformerBlock(32, 4, qk_norm=True)
    x, rotary = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0)), rotary_angles(6, 8)
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        y = layer(x, rotary, causal=True, cache=(cache := KVCache()))
    torch.testing.assert_close(y, layer(x, rotary, causal=True), atol=0.05, rtol=0.05)
    assert [t.dtype for t in cache.layers[0]] == [torch.bfloat16] * 2
    assert layer.bfloat16()(x.bfloat16(), rotary).dtype == torch.bfloat16


@pytest.mark.parametrize(("sizes", "message"), [((10, 4), "not divisible"), ((8, 0), "not divisible"), ((6, 2), "make it even")])
def test_head_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message): Attention(*sizes)


# SwiGLU and the block

@given(st.integers(0, 99), st.integers(1, 40))
def test_swiglu_equals_its_definition(seed, hidden_size):
    layer, x = SwiGLU(hidden_size).double(), normal(seed, 2, hidden_size)
    gate, up = layer.gate_up.weight.chunk(2)
    z = x @ gate.T
    close(layer(x), (z / (1 + torch.exp(-z)) * (x @ up.T)) @ layer.down.weight.T)


@given(st.integers(1, 700))
def test_swiglu_costs_a_plain_layer_and_less_than_64_columns(hidden_size):
    width = SwiGLU(hidden_size).down.in_features
    assert width % 64 == 0 and 0 <= width - hidden_size * 8 / 3 < 64


def test_a_block_whose_branches_write_nothing_is_the_identity():
    layer, x = blocks(0, 1)[0], normal(1, 1, 4, 8)
    nn.init.zeros_(layer.attention.out.weight), nn.init.zeros_(layer.mlp.down.weight)
    assert torch.equal(read([layer], x), x)


def test_dropout_only_in_training():
    layer, x = blocks(0, 1, dropout=0.5)[0], normal(1, 1, 4, 8)
    assert torch.equal(read([layer.eval()], x), read([layer], x))
    torch.manual_seed(0)
    assert not torch.equal(read([layer.train()], x), read([layer], x))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_plain_products_in_half_precision_are_attention(causal, padded):
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=g, dtype=torch.float64)
    mask = torch.rand(2, 9, generator=g) < 0.6 if padded else None
    halves = [t.bfloat16().requires_grad_() for t in (q, k, v)]
    wholes = [t.detach().double().requires_grad_() for t in halves]
    out, expected = attend(*halves, mask, causal), attend(*wholes, mask, causal)
    torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.05)
    out.float().square().sum().backward(), expected.square().sum().backward()
    for half, whole in zip(halves, wholes):
        torch.testing.assert_close(half.grad.double(), whole.grad, atol=0.1, rtol=0.1)


def test_a_cache_copies_seldom_and_holds_what_it_was_given():
    cache, parts = KVCache(), [normal(i, 1, 2, 1, 4) for i in range(20)]
    rooms = set()
    for part in parts:
        k, v = cache.extend(0, part, 2 * part)
        rooms.add(k.untyped_storage().data_ptr())
        assert k.shape[2] == cache.length
    assert torch.equal(k, torch.cat(parts, 2)) and torch.equal(v, 2 * torch.cat(parts, 2)) and len(rooms) <= 6


def test_gradients_reach_all_of_a_cache():
    cache, parts = KVCache(), [normal(i, 1, 2, 1, 4).requires_grad_() for i in range(5)]
    for part in parts: k, v = cache.extend(0, part, part)
    (k * v).sum().backward()
    for part in parts: close(part.grad, 2 * part.detach())
