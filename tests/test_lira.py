"""LIRA: its sizes, that every weight learns, that no answer leaks, and that options, depth, pads and states do what they say and no more."""
import math
from itertools import product
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from shimmer import layers
from shimmer.corruption import Batch, draw_noise, mask_tokens
from shimmer.devices import compiled
from shimmer.layers import rotary_angles
from shimmer.likelihood import nelbo
from shimmer.lira import AdaptiveDepth, LatentCanvasConfig, LatentCanvasModel, MAX_LOOPS, RefineBlock
from shimmer.models import load_model
from shimmer.objectives import MaskedLM
from shimmer.policies import TopK
from shimmer.samplers import refine

V, L = 11, 9
SMALL = dict(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_refine_steps=3, max_seq_len=L)
OPTIONS = dict(qk_norm=True, tie_embeddings=True, num_prelude_layers=1, num_coda_layers=1, reinject=True, loop_embedding=True, carry_latent=True)
STAGE_4 = MaskedLM(num_refine_steps=3, mask_ratio=(0.1, 1.0), confidence_weight=0.1)
combinations = st.fixed_dictionaries({name: st.sampled_from([LatentCanvasConfig.__dataclass_fields__[name].default, value]) for name, value in OPTIONS.items()})


def make(seed=0, **options):
    "A model in evaluation mode whose weights are large enough to make every difference visible."
    torch.manual_seed(seed)
    model = LatentCanvasModel(LatentCanvasConfig(**SMALL | options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2: p.mul_(10)
        if model.carry_norm is not None: model.carry_norm.weight.fill_(1)
    return model


def texts(seed, rows=8, length=L, vocab=V): return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch(seed, ids=None):
    ids = texts(seed) if ids is None else ids
    return Batch(ids, draw_noise(*ids.shape, torch.Generator().manual_seed(seed)))


def masked_canvas(b, mask_token_id=V):
    masked = mask_tokens(b.noise, STAGE_4.mask_ratio).masked
    return b.ids.masked_fill(masked, mask_token_id), masked


# sizes

@pytest.mark.parametrize("shape, parameters", [(dict(hidden_size=512, num_layers=10, num_heads=8), 42_359_808),
                                               (dict(hidden_size=288, num_layers=6, num_heads=6), 11_733_696)])
@pytest.mark.parametrize("K", [1, 8])
def test_golden_parameter_counts(shape, parameters, K):
    with torch.device("meta"): model = LatentCanvasModel(LatentCanvasConfig(vocab_size=9_995, num_refine_steps=K, **shape))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("option, added", [("tie_embeddings", -V * 16), ("num_prelude_layers", 4 * 256 + 3 * 16 * 64 + 3 * 16), ("num_coda_layers", 4 * 256 + 3 * 16 * 64 + 3 * 16),
                                           ("reinject", 0), ("loop_embedding", MAX_LOOPS * 16), ("carry_latent", 16), ("qk_norm", 2 * 2 * 8)])
def test_what_an_option_adds(option, added):
    plain, changed = (sum(p.numel() for p in make(**options).parameters()) for options in ({}, {option: OPTIONS[option]}))
    assert changed - plain == added


# learning

@given(combinations, st.sampled_from([None, 4]))
@settings(max_examples=20)
def test_every_parameter_learns_but_rows_never_read(options, mask_token_id):
    model = make(mask_token_id=mask_token_id, **options).train()
    mask_id = model.config.mask_token_id
    ids = torch.cat([texts(s, rows=16) for s in range(4)])
    ids = ids.masked_fill(ids == mask_id, 0)
    STAGE_4(model, batch(0, ids))["loss"].backward()
    for name, p in model.named_parameters():
        rows = p.grad.flatten(1).norm(dim=1) if p.ndim == 2 else p.grad.norm()[None]
        unread = set()
        if name == "embed_tokens.weight": unread = {mask_id, V}
        if name == "lm_head.weight" and mask_token_id is not None: unread = {mask_id}
        if name == "loop_embed.weight": unread = set(range(STAGE_4.num_refine_steps, MAX_LOOPS))
        if name == "confidence_head.weight" or name == "mask_embed": rows = p.grad.norm()[None]
        assert {i for i, g in enumerate(rows.tolist()) if g == 0} == unread, name


def test_parameters_learn_under_autocast_with_a_carried_latent():
    model = make(**OPTIONS).train()
    with torch.autocast("cpu", torch.bfloat16): loss = STAGE_4(model, batch(0))["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_carrying_model_learns_to_start_without_a_state():
    model, started = make(carry_latent=True), []
    model.carry_norm.register_forward_pre_hook(lambda _, args: started.append(args[0].flatten(1).any(1)))
    for seed in range(30): STAGE_4(model, batch(seed))
    share = torch.cat(started).float().mean().item()
    assert 0.35 < share < 0.65  # 240 rows, one half expected


def test_the_parts_of_the_loss_add_up():
    model = make()
    losses = STAGE_4(model, batch(0))
    torch.testing.assert_close(losses["loss"], losses["token_loss"] + 0.1 * losses["confidence_loss"])
    without = replace(STAGE_4, confidence_weight=0.0)(model, batch(0))
    assert set(without) == {"loss"}
    torch.testing.assert_close(without["loss"], losses["token_loss"])


def test_the_loss_is_that_of_the_predictions_at_the_holes():
    model, b = make(), batch(1)
    canvas, masked = masked_canvas(b)
    ce = -model(canvas).logits.log_softmax(-1).gather(-1, b.ids[..., None])[..., 0]
    by_row = (ce * masked).sum(1) / masked.sum(1)
    torch.testing.assert_close(STAGE_4(model, b)["token_loss"], by_row.mean().detach())


# leaks

@given(combinations, st.integers(0, 99))
@settings(max_examples=20)
def test_hidden_tokens_never_reach_the_logits(options, seed):
    model, b, read = make(**options), batch(seed), []
    keep = lambda logits: read.append(logits) or logits if len(logits) else logits  # a first call for the state reads nothing out
    _, masked = masked_canvas(b)
    other = torch.where(masked, (b.ids + 1 + texts(seed + 1, vocab=V - 1)) % V, b.ids)
    model.read_tokens = lambda z, plain=model.read_tokens: keep(plain(z))
    with torch.no_grad(): STAGE_4(model, b), STAGE_4(model, Batch(other, b.noise))
    assert (other != b.ids)[masked].all() and torch.equal(*read)


def test_visible_tokens_do_reach_the_logits():
    model, ids = make(), texts(0)
    ids[:, 0] = V
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % V
    assert (model(ids).logits[:, 0] != model(changed).logits[:, 0]).any(-1).all()


def test_mask_inside_the_vocabulary_is_impossible():
    for tied in (False, True):
        logits = make(mask_token_id=4, tie_embeddings=tied)(texts(0)).logits
        assert logits.shape[-1] == V and logits[..., 4].eq(-torch.inf).all() and logits.isinf().sum() == logits[..., 4].numel()
        assert make(tie_embeddings=tied)(texts(0)).logits.isfinite().all()


# pads, depth, states

@given(combinations, st.lists(st.integers(1, L), min_size=1, max_size=4), st.booleans())
@settings(max_examples=20)
def test_pads_change_nothing(options, lengths, left):
    model = make(pad_token_id=V - 1, **options)
    with torch.no_grad():
        alone = [texts(i, rows=1, length=n, vocab=V - 1) for i, n in enumerate(lengths)]
        padded = torch.full((len(lengths), L), V - 1)
        spans = [slice(L - n, L) if left else slice(0, n) for n in lengths]
        for row, ids, span in zip(padded, alone, spans): row[span] = ids[0]
        together = model(padded)
        for i, (ids, span) in enumerate(zip(alone, spans)):
            prediction = model(ids)
            torch.testing.assert_close(together.logits[i, span], prediction.logits[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(together.confidence[i, span], prediction.confidence[0], atol=1e-4, rtol=1e-4)


def test_pads_are_no_targets():
    model, ids = make(pad_token_id=V - 1), texts(0, vocab=V - 1)
    ids[:, 5:] = V - 1
    b, read = batch(0, ids), []
    model.read_tokens = lambda z, plain=model.read_tokens: read.append(len(z)) or plain(z)
    STAGE_4(model, b)
    assert read == [int(mask_tokens(b.noise, STAGE_4.mask_ratio, ids != V - 1).masked.sum())] and read[0] <= 5 * len(ids)


@pytest.mark.parametrize("K", [1, 2, 5, MAX_LOOPS + 2])
def test_any_number_of_refinements_per_call(K):
    model, ids = make(), texts(0)
    applied = []
    model.refine_block.register_forward_hook(lambda *_: applied.append(1))
    called = model(ids, num_refine_steps=K)
    assert len(applied) == K
    model.config.num_refine_steps = K
    assert torch.equal(called.logits, model.denoise(ids).logits)
    assert make(loop_embedding=True)(ids, num_refine_steps=K).logits.isfinite().all()


@given(combinations)
@settings(max_examples=20)
def test_a_state_matters_only_where_the_latent_is_carried(options):
    model, ids = make(**options), texts(0)
    with torch.no_grad():
        first = model.denoise(ids)
        assert torch.equal(model.denoise(ids, first.state).logits, first.logits) == (not options["carry_latent"])
        assert torch.equal(model.denoise(ids, torch.zeros_like(first.state)).logits, first.logits)


def test_shapes_and_ranges():
    prediction = make()(texts(0, rows=2, length=5))
    assert prediction.logits.shape == (2, 5, V) and prediction.logits.dtype == torch.float32
    assert prediction.confidence.shape == (2, 5) and 0 <= prediction.confidence.min() and prediction.confidence.max() <= 1
    assert prediction.state.shape == (2, 5, 16)


def test_a_fresh_model_carries_nothing_yet():
    torch.manual_seed(0)
    model = LatentCanvasModel(LatentCanvasConfig(**SMALL, carry_latent=True))
    with torch.no_grad(): assert torch.equal(model(texts(0)).logits, model(texts(0), state=torch.randn(8, L, 16)).logits)
    STAGE_4(model, batch(0))["loss"].backward()
    assert model.carry_norm.weight.grad.all()


# saving

@pytest.mark.parametrize("on", list(product([False, True], repeat=len(OPTIONS))), ids=lambda on: "".join(map(str, map(int, on))))
def test_save_and_load(tmp_path, on):
    model = make(**{name: value for (name, value), used in zip(OPTIONS.items(), on) if used})
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is LatentCanvasModel and again.config == model.config
    with torch.no_grad(): assert torch.equal(again(texts(0)).logits, model(texts(0)).logits)


# refusals

@pytest.mark.parametrize("wrong, message", [
    (dict(hidden_size=15), "hidden_size 15 is not divisible by num_heads 2"),
    (dict(hidden_size=6), "make it even"),
    (dict(num_heads=0), "num_heads 0"),
    (dict(num_layers=0), "num_layers is 0"),
    (dict(num_refine_steps=0), "num_refine_steps is 0"),
    (dict(mask_token_id=V + 1), f"mask_token_id {V + 1} lies outside 0..{V}"),
    (dict(mask_token_id=-1), "mask_token_id -1"),
    (dict(pad_token_id=V + 1), f"pad_token_id {V + 1} lies outside 0..{V}"),
    (dict(pad_token_id=V), f"both {V}"),
    (dict(mask_token_id=3, pad_token_id=3), "both 3")])
def test_shapes_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(ValueError) as refused: LatentCanvasModel(LatentCanvasConfig(**SMALL | wrong))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_calls_that_cannot_work_are_refused():
    model = make()
    with pytest.raises(ValueError, match="num_refine_steps is 0: .* at least 1"): model(texts(0), num_refine_steps=0)
    with pytest.raises(ValueError, match=f"the canvas has {L + 1} tokens, max_seq_len is {L}"): model(texts(0, length=L + 1))


def test_blocks_keep_the_latent_at_one_size():
    torch.manual_seed(0)
    block, z = RefineBlock(LatentCanvasConfig(**SMALL)), torch.randn(2, L, 16) * 100
    assert abs(block(z, rotary_angles(L, 8)).pow(2).mean().item() - 1) < 1e-3


@pytest.mark.parametrize("field, value", [("vocab_size", 0), ("hidden_size", 0), ("hidden_size", -8), ("max_seq_len", 0), ("num_prelude_layers", -1), ("num_coda_layers", -2), ("dropout", 1.0), ("dropout", -0.1)])
def test_a_shape_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        LatentCanvasConfig(**{"vocab_size": 9, field: value})


# fast attention, and what is compiled

@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_is_left_out_only_where_nothing_is_padded(monkeypatch, padded):
    torch.manual_seed(0)
    model = LatentCanvasModel(LatentCanvasConfig(9, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=6, pad_token_id=8, num_prelude_layers=1)).eval()
    ids = torch.randint(8, (3, 6), generator=torch.Generator().manual_seed(0))
    if padded: ids[1, 4:] = 8
    usual, seen = model(ids).logits, []
    attend = layers.attend
    monkeypatch.setattr(layers, "masks_cost", lambda device: True)
    monkeypatch.setattr(layers, "attend", lambda q, k, v, mask=None, causal=False: (seen.append(mask is not None), attend(q, k, v, mask, causal))[1])
    torch.testing.assert_close(model(ids).logits, usual)
    assert seen and set(seen) == {padded}


def test_prelude_and_coda_are_compiled_where_there_are_any(monkeypatch):
    compiled_modules = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled_modules.append(self))
    for options, count in ((dict(), 1), (dict(num_prelude_layers=1, num_coda_layers=1), 3)):
        model = LatentCanvasModel(LatentCanvasConfig(9, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=6, **options))
        compiled_modules.clear()
        with compiled(model, model.compiled_parts): assert len(compiled_modules) == count and model.refine_block in compiled_modules


def half_hidden(seed, rows=8):
    ids = texts(seed, rows)
    return ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < torch.linspace(0, 1, rows)[:, None], V)


@settings(max_examples=20)
@given(combinations, st.integers(0, 99))
def test_adaptive_depth_reads_each_text_where_it_stops(options, seed):
    model, canvas = make(seed, **options), half_hidden(seed)
    state = torch.randn(8, L, 16, generator=torch.Generator().manual_seed(seed))
    hidden = canvas == V
    with torch.no_grad():
        each = model.denoise_each(canvas, 6, state)
        held = torch.stack([(one.logits.log_softmax(-1).amax(-1) * hidden).sum(1) for one in each])
        adaptive = AdaptiveDepth(model, threshold=held.max(0).values.median().exp().clamp(1e-30, 1).item() * 0.99, max_refine_steps=6)
        said, some = adaptive.denoise(canvas, state), adaptive.denoise(canvas, state, hidden)
    for row, k in enumerate(adaptive.num_refinements.tolist()):
        assert (held[: k - 1, row] < math.log(adaptive.threshold) + 1e-3).all() and (k == 6 or held[k - 1, row] > math.log(adaptive.threshold) - 1e-3)
        torch.testing.assert_close(said.logits[row], each[k - 1].logits[row], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(said.state[row], each[k - 1].state[row], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(some.logits, said.logits[hidden], rtol=1e-3, atol=1e-3)


def test_adaptive_depth_stops_rows_at_different_depths_and_alone_as_in_company():
    model, canvas = make(3, reinject=True), half_hidden(3)
    adaptive = AdaptiveDepth(model, threshold=0.2, max_refine_steps=12)
    with torch.no_grad():
        together = adaptive.denoise(canvas)
        steps = adaptive.num_refinements.tolist()
        for row, k in enumerate(steps):
            alone = adaptive.denoise(canvas[row : row + 1])
            assert adaptive.num_refinements.tolist() == [k]
            torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-3, atol=1e-3)
    assert steps[0] == 1 and len(set(steps)) > 1  # nothing is hidden in the first


def test_adaptive_depth_that_is_never_sure_is_the_model_with_more_refinements():
    torch.manual_seed(0)
    model, canvas = LatentCanvasModel(LatentCanvasConfig(**SMALL)).eval(), torch.full((2, L), V)
    adaptive = AdaptiveDepth(model, threshold=1.0)
    with torch.no_grad(): torch.testing.assert_close(adaptive.denoise(canvas).logits, model(canvas, num_refine_steps=12).logits)
    assert adaptive.num_refinements.tolist() == [12, 12]


def test_adaptive_depth_is_sampled_from_and_scored():
    model = make(1)
    adaptive = AdaptiveDepth(model, threshold=0.3)
    run = refine(adaptive, half_hidden(1), TopK(k=2), L)
    assert not (run.ids == V).any()
    assert nelbo(adaptive, texts(1), draws=2).isfinite().all()


@pytest.mark.parametrize("options, said", [(dict(threshold=0.0), "threshold is 0.0"), (dict(threshold=1.5), "threshold is 1.5"), (dict(max_refine_steps=0), "max_refine_steps is 0: a canvas needs")])
def test_adaptive_depth_refuses_what_makes_no_sense(options, said):
    with pytest.raises(ValueError, match=said): AdaptiveDepth(make(), **options)
