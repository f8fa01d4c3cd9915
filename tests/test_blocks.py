"""Blocks on alphabets small enough to enumerate every text: one token at a time is a GPT, a bound stays a bound, the cache changes nothing."""
import math
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from shimmer.blocks import BlockView, generate_blocks, read_block, refine_blocks, speculate_blocks
from shimmer.corruption import Batch, draw_noise, mask_tokens, masked_loss
from shimmer.layers import KVCache, block_mask
from shimmer.likelihood import duel_nll, exact_nelbo, left_to_right_nll, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.objectives import MaskedLM, Prism
from shimmer.policies import EntropyBound, TopK, UnmaskAction
from shimmer.samplers import refine
from shimmer.testing import total_probability
from shimmer.training import flops_per_update

V, MASK, PAD = 3, 4, 3
EVERYTHING = dict(num_prelude_layers=1, num_coda_layers=1, reinject=True, loop_embedding=True)


def tiny(block_length=2, length=6, **options) -> LatentCanvasModel:
    "A model of random weights large enough to be opinionated."
    torch.manual_seed(0)
    config = dict(vocab_size=4, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=length, pad_token_id=PAD, begin_token=True, block_lengths=(1, 99) if block_length else ())
    model = LatentCanvasModel(LatentCanvasConfig(**config | options | dict(block_length=block_length))).eval()
    for p in model.parameters(): p.data.mul_(3)
    return model


def texts(rows=5, length=6, seed=0):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_who_sees_whom():
    seen = block_mask(torch.tensor([1, 1, 3, 3]), clean=3, held=0)  # a begin token, two blocks of two, of which the last is in no clean half
    assert seen[:3, :3].equal(torch.ones(3, 3, dtype=torch.bool).tril()) and not seen[:3, 3:].any()
    assert seen[3:, :3].int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert seen[3:, 3:].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert block_mask(torch.tensor([5, 5]), clean=2, held=3).shape == (4, 7)


@pytest.mark.parametrize("options", [{}, EVERYTHING, dict(begin_token=False, position_embedding=True)])
def test_blocks_of_one_are_read_like_a_gpt(options):
    model, ids = tiny(1, **options), texts()
    exact = left_to_right_nll(model, ids)
    for bound in (nelbo(model, ids, draws=3), exact_nelbo(model, ids), duel_nll(model, ids)):
        torch.testing.assert_close(bound, exact, atol=1e-5, rtol=0)
    assert total_probability(lambda ids: nelbo(model, ids), V, 4) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.parametrize("block_length", [2, 3, 9])
def test_bounds_and_likelihoods_of_longer_blocks(block_length, options):
    model, ids = tiny(block_length, **options), texts(3)
    assert total_probability(lambda ids: left_to_right_nll(model, ids), V, 4) == pytest.approx(1, abs=1e-5)
    assert total_probability(lambda ids: duel_nll(model, ids, EntropyBound(0.5)), V, 4) == pytest.approx(1, abs=1e-5)
    assert total_probability(lambda ids: exact_nelbo(model, ids), V, 4) < 1 - 1e-4
    torch.testing.assert_close(nelbo(model, ids, draws=2000), exact_nelbo(model, ids), atol=0, rtol=0.03)


def test_pads_change_nothing():
    model, ids = tiny(2), texts(3, 4)
    longer = torch.cat([ids, torch.full((3, 2), PAD)], 1)
    for measure in (left_to_right_nll, exact_nelbo, duel_nll):
        torch.testing.assert_close(measure(model, longer), measure(model, ids), atol=1e-5, rtol=0)


def test_a_block_sees_clean_text_before_it_and_nothing_else():
    model, ids = tiny(2), texts(4)
    canvas = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.5, MASK)
    said = model.denoise(canvas, clean=ids).logits
    for start in (0, 2, 4):
        other, noise = ids.clone(), canvas.clone()
        other[:, start:] = (other[:, start:] + 1) % V  # the block itself and all behind it
        noise[:, :start], noise[:, start + 2 :] = MASK, MASK  # all but the block
        torch.testing.assert_close(model.denoise(noise, clean=other).logits[:, start : start + 2], said[:, start : start + 2], atol=1e-5, rtol=0)
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % V
    moved = (model.denoise(canvas, clean=other).logits != said).any(-1).any(0)
    assert moved.tolist() == [False, False, True, True, True, True]


@given(block_length=st.integers(1, 7), steps=st.lists(st.integers(1, 3), min_size=1, max_size=4), options=st.sampled_from([{}, EVERYTHING, dict(begin_token=False, position_embedding=True, block_length=2)]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_cached_blocks_say_what_uncached_ones_say(block_length, steps, options, seed):
    model, ids = tiny(block_length, 7, **{k: v for k, v in options.items() if k != "block_length"}), texts(3, 7, seed)
    start = min(sum(steps), 7) // block_length * block_length
    canvas, end = ids.clone(), min(start + block_length, 7)
    if start == end: return
    canvas[:, start:] = MASK
    canvas[0, start] = 1  # one row knows a token of its block
    wanted = model.denoise(canvas).logits[:, start:end]
    cache, done = KVCache(), 0
    for step in steps:  # the text before the block, in pieces
        piece = ids[:, done : min(done + step, start)]
        read_block(model, piece, piece.shape[1], cache)
        done += piece.shape[1]
    for _ in range(2):  # a block that was looked at leaves nothing behind
        z = read_block(model, torch.cat([ids[:, done:start], canvas[:, start:end]], 1), start - done, cache)
        done = start
        torch.testing.assert_close(model.decode(z).logits, wanted, atol=1e-4, rtol=0)


def test_one_block_is_the_whole_canvas():
    model, empty = tiny(None, begin_token=False, position_embedding=True), torch.full((4, 6), MASK)
    whole = refine(model, empty, EntropyBound(0.5), 6, seed=3)
    other = tiny(6, begin_token=False, position_embedding=True)
    other.load_state_dict(model.state_dict())
    block = refine_blocks(other, empty, EntropyBound(0.5), seed=3)
    for name in ("ids", "canvases", "num_calls", "chosen"): assert getattr(whole, name).equal(getattr(block, name)), name
    torch.testing.assert_close(block.confidence[whole.chosen], whole.confidence[whole.chosen])


@pytest.mark.parametrize("block_length", [1, 2, 4])
def test_texts_are_written_as_often_as_their_likelihood_says(block_length):
    model, rows = tiny(block_length), 4000
    run = refine_blocks(model, torch.full((rows, 4), MASK), EntropyBound(0.5), seed=11, record=False)
    code = lambda ids: (ids * V ** torch.arange(4)).sum(1)
    every = torch.cartesian_prod(*[torch.arange(V)] * 4)
    expected = (-duel_nll(model, every, EntropyBound(0.5))).exp() * rows
    counted = torch.bincount(code(run.ids), minlength=V**4)[code(every)]
    often = expected >= 5
    groups = lambda x: torch.cat([x[often], x[~often].sum()[None]])
    statistic = ((groups(counted.double()) - groups(expected)) ** 2 / groups(expected).clamp(min=1e-9)).sum().item()
    assert statistic < chi2.ppf(0.9999, int(often.sum()))


@pytest.mark.parametrize("record", [True, False])
def test_prompts_of_any_length_are_continued_as_if_alone(record):
    model = tiny(3, 12)
    prompts = [[], [0, 1], [2, 1, 0, 0, 1], [1, 1, 1]]
    together = generate_blocks(model, prompts, gen_length=5, seed=7, record=record)
    for i, prompt in enumerate(prompts):
        alone = generate_blocks(model, [prompt], gen_length=5, seed=7 + i, record=record)
        assert together.ids[i, : len(prompt) + 5].equal(alone.ids[0]) and together.ids[i, : len(prompt)].tolist() == prompt
        assert together.num_calls[i] == alone.num_calls[0] and (together.ids[i, len(prompt) + 5 :] == PAD).all()
    assert together.stop_reason == ["canvas full"] * 4
    if not record: return
    assert len(together.canvases) == len(together.confidence) + 1 == len(together.chosen) + 1
    assert together.canvases[-1].equal(together.ids) and together.written.sum() == 20 and together.chosen.equal(together.written)
    unwritten = together.canvases[1:] == MASK
    assert together.confidence[~unwritten].isfinite().all() and (together.confidence[:, 2, :3] == 1).all()
    assert together.confidence[0][unwritten[0]].isnan().any()


def test_an_end_ends_a_text_and_leaves_its_neighbours_alone():
    model = tiny(2, 12)
    free = generate_blocks(model, [[], [], [], []], gen_length=10, seed=1)
    run = generate_blocks(model, [[], [], [], []], gen_length=10, seed=1, eos_token_id=2)
    for row, other in zip(run.ids.tolist(), free.ids.tolist()):
        if 2 in other: assert row[: other.index(2) + 1] == other[: other.index(2) + 1] and set(row[other.index(2) :]) == {2}
        else: assert row == other
    assert (run.num_calls <= free.num_calls).all() and run.num_calls.sum() < free.num_calls.sum() and run.canvases[-1].equal(run.ids)


def test_texts_go_on_beyond_the_length_of_training():
    run = generate_blocks(tiny(2, 6), [[0, 1, 2]], gen_length=20, policy=TopK(k=1))
    assert run.ids.shape == (1, 23) and run.num_calls.tolist() == [20] and (run.ids < V).all()
    with pytest.raises(ValueError, match="max_seq_len"): generate_blocks(tiny(2, 6, position_embedding=True), [[0]], gen_length=20)


class FirstMask:
    "One position a call, whatever the calls."
    reopens = False
    def __call__(self, view): return UnmaskAction(view.masked & (view.masked.cumsum(1) == 1))


def test_calls_can_be_used_up():
    run = refine_blocks(tiny(4, 8), torch.full((2, 8), MASK), FirstMask(), num_steps=2)
    assert run.stop_reason == ["calls used up"] * 2 and run.num_calls.tolist() == [2, 2] and (run.ids[:, 4:] == MASK).all()
    nothing = refine_blocks(tiny(4, 8), texts(2, 8), TopK(k=1))
    assert nothing.stop_reason == ["nothing to write"] * 2 and nothing.ids.equal(texts(2, 8)) and not nothing.num_calls.any()


def test_words_that_are_fixed_within_blocks_stay():
    canvas = torch.full((3, 9), MASK)
    canvas[0, 4], canvas[1, :6], canvas[2, 8] = 1, 2, 0
    run = refine_blocks(tiny(3, 9), canvas, EntropyBound(), seed=2)
    assert (run.ids[run.fixed] == canvas[run.fixed]).all() and (run.ids != MASK).all() and run.num_calls[1] <= 3


@pytest.mark.parametrize("objective", [MaskedLM((1e-6, 1.0)), MaskedLM((1e-6, 1.0), deep_supervision=True), Prism((1e-6, 1.0))])
def test_the_loss_estimates_the_bound(objective):
    model, ids = tiny(3, vocab_size=V, pad_token_id=None, block_lengths=()), texts(1)
    batch = Batch(ids.expand(4000, -1), draw_noise(4000, 6, torch.Generator().manual_seed(0)))
    with torch.no_grad(): losses = objective(model, batch)
    exact = exact_nelbo(model, ids).item() / 6
    if getattr(objective, "deep_supervision", False):
        with torch.no_grad(): each = [MaskedLM((1e-6, 1.0), K)(model, batch)["loss"] for K in (1, 2)]
        torch.testing.assert_close(losses["loss"], sum(each) / 2)
    else: assert losses.get("token_loss", losses["loss"]).item() == pytest.approx(exact, rel=0.02)


def test_blocks_are_masked_each_on_its_own():
    noise = draw_noise(64, 10, torch.Generator().manual_seed(0))
    real = torch.arange(10).expand(64, -1) < torch.tensor([10, 7]).repeat(32)[:, None]
    mask = mask_tokens(noise, (0.25, 0.75), real, 4)
    assert mask.ratio.shape == (64, 3) and not mask.masked[~real].any()
    count = torch.stack([mask.masked[:, :4].sum(1), mask.masked[:, 4:8].sum(1), mask.masked[:, 8:].sum(1)], 1)
    assert (count[:, :2] >= 1).all() and (count[:, 0] <= 3).all() and set(count[1::2, 2].tolist()) == {0}
    assert (count[:, 0] != count[:, 1]).any()
    assert mask_tokens(noise, (0.1, 1.0), None, 1).masked.all()
    assert mask_tokens(noise, (0.1, 1.0), None, 10).masked.equal(mask_tokens(noise, (0.1, 1.0)).masked)
    nats = torch.ones(int(mask.masked.sum()))
    assert masked_loss(nats, mask).item() == pytest.approx(1)  # a token costs one nat, wherever it is
    halves = [mask_tokens(part, (0.25, 0.75), kept, 4) for part, kept in ((noise[:32], real[:32]), (noise[32:], real[32:]))]
    assert torch.cat([half.masked for half in halves]).equal(mask.masked)


def test_a_mixture_trains_one_set_of_weights_for_all_lengths():
    model, losses = tiny(None, block_lengths=(1, 2, 6)), set()
    assert model.config.block_length == 6 and model.config.block_lengths == (1, 2, 6)
    alone = {b: tiny(b, block_lengths=()) for b in (1, 2, 6)}  # the same weights
    for seed in range(30):
        batch = Batch(texts(), draw_noise(5, 6, torch.Generator().manual_seed(0)), seed)
        loss = MaskedLM()(model, batch)["loss"]
        assert torch.equal(loss, MaskedLM()(model, batch)["loss"])
        found = [b for b, other in alone.items() if torch.equal(loss, MaskedLM()(other, batch)["loss"])]
        assert len(found) == 1
        losses |= set(found)
        loss.backward()
    assert losses == {1, 2, 6} and all(p.grad is not None for name, p in model.named_parameters() if "confidence" not in name)


def test_operations_are_the_mean_over_the_lengths_that_are_drawn():
    count = lambda lengths: flops_per_update(tiny(None, block_lengths=lengths), MaskedLM(), 4, 6)
    assert count((1, 6)) == round((count((1,)) + count((6,))) / 2) and count((1,)) == pytest.approx(count((2,)), rel=0.01) and count((2,)) > 1.5 * count((6,))


@pytest.mark.parametrize("options, message", [(dict(block_length=0), "block_length is 0"), (dict(block_length=-3), "block_length is -3"), (dict(block_lengths=(4, 0)), r"block_lengths \(4, 0\)"), (dict(block_length=2, carry_latent=True), "carry_latent is on")])
def test_a_config_that_can_be_no_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message): LatentCanvasConfig(4, **options)


@pytest.mark.parametrize("lengths, asked", [((4, 16), 1), ((4, 16), 17), ((2,), 1), ((1,), 2)])
def test_a_length_beyond_those_of_training_is_refused(lengths, asked):
    model = tiny(None, block_lengths=lengths)
    with pytest.raises(ValueError, match=f"block_length is {asked}, and the model was trained in blocks of {lengths[0]}"): model.at_block_length(asked)
    assert model.at_block_length(lengths[-1]).config.block_lengths == lengths


def test_a_cache_of_other_weights_is_refused():
    model, cache = tiny(2), KVCache()
    with torch.no_grad():
        read_block(model, texts(), 6, cache)
        read_block(model.at_block_length(3), torch.full((5, 3), MASK), 0, cache)  # the same weights, in other blocks
        for stranger in (tiny(2), model.at_block_length(2)):
            if stranger.embed_tokens is model.embed_tokens: stranger.config.num_refine_steps = 3
            with pytest.raises(ValueError, match="the cache holds 7 tokens that another model"): read_block(stranger, torch.full((5, 2), MASK), 0, cache)
        for p in model.parameters(): p.mul_(1.1)
        with pytest.raises(ValueError, match="other weights"): read_block(model, torch.full((5, 2), MASK), 0, cache)


@pytest.mark.parametrize("write", [lambda model: refine_blocks(model, torch.full((1, 4), MASK), TopK(k=1)), lambda model: generate_blocks(model, [[0]], gen_length=3)])
def test_a_model_without_blocks_writes_none(write):
    with pytest.raises(ValueError, match="was not trained in blocks"): write(tiny(None))


def test_bad_requests_are_refused():
    model = tiny(2)
    with pytest.raises(ValueError, match="block_length is 0"): generate_blocks(model, [[0]], block_length=0)
    with pytest.raises(ValueError, match="num_steps is 0"): generate_blocks(model, [[0]], gen_length=3, num_steps=0)
    with pytest.raises(ValueError, match="temperature is -1"): generate_blocks(model, [[0]], gen_length=3, temperature=-1)
    with pytest.raises(ValueError, match="prompt_ids is empty"): generate_blocks(model, [])


def test_a_view_is_a_denoiser_like_any_other():
    model = tiny(3)
    with torch.no_grad():
        view = BlockView(model, KVCache(), texts(2, 3), 3)
        ids = torch.full((2, 3), MASK)
        first = view.denoise(ids)
        again = view.denoise(ids, first.state)
        torch.testing.assert_close(first.logits, again.logits, atol=1e-5, rtol=0)
        one = view.denoise(ids[1:], first.state[1:])
        torch.testing.assert_close(one.logits[0], first.logits[1], atol=1e-5, rtol=0)
    assert math.isclose(view.cache.length, 4)


@pytest.mark.parametrize("draft_length", [1, 2, 5])
def test_speculation_writes_what_one_token_at_a_time_would(draft_length):
    model, rows = tiny(3, 8, vocab_size=V, pad_token_id=None), 4000
    run = speculate_blocks(model, [[]] * rows, draft_length, gen_length=4, temperature=1.0, seed=3)
    every = torch.cartesian_prod(*[torch.arange(V)] * 4)
    expected = (-nelbo(model.at_block_length(1), every)).exp() * rows
    code = lambda ids: (ids * V ** torch.arange(4)).sum(1)
    counted = torch.bincount(code(run.ids), minlength=V**4)[code(every)]
    often = expected >= 5
    groups = lambda x: torch.cat([x[often], x[~often].sum()[None]])
    statistic = ((groups(counted.double()) - groups(expected)) ** 2 / groups(expected).clamp(min=1e-9)).sum().item()
    assert statistic < chi2.ppf(0.9999, int(often.sum()))
    assert (run.num_calls <= 4).all() and run.num_calls.double().mean() < 3.5 and (run.accepted.sum(0) + run.num_calls >= 4).all()


@pytest.mark.parametrize("options", [{}, EVERYTHING, dict(begin_token=False)])
def test_speculation_is_greedy_where_the_model_is(options):
    model, prompts = tiny(3, 16, **options), [[], [0, 1], [2, 1, 0, 0, 1]]
    wanted = generate_blocks(model, prompts, TopK(k=1), block_length=1, gen_length=10, temperature=0)
    run = speculate_blocks(model, prompts, 3, gen_length=10, temperature=0)
    assert run.ids.equal(wanted.ids) and (run.num_calls < 10).all()
    with_end = speculate_blocks(model, prompts, 3, gen_length=10, temperature=0, eos_token_id=2)
    assert with_end.ids.equal(generate_blocks(model, prompts, TopK(k=1), block_length=1, gen_length=10, temperature=0, eos_token_id=2).ids)


def test_a_speculated_text_depends_on_no_neighbour():
    model, prompts = tiny(3, 16), [[], [0, 1], [2, 1, 0, 0, 1], [1]]
    together = speculate_blocks(model, prompts, 3, gen_length=9, temperature=1.0, seed=5, eos_token_id=2)
    for i, prompt in enumerate(prompts):
        alone = speculate_blocks(model, [prompt], 3, gen_length=9, temperature=1.0, seed=5 + i, eos_token_id=2)
        assert together.ids[i, : len(prompt) + 9].equal(alone.ids[0]) and together.num_calls[i] == alone.num_calls[0]
    assert speculate_blocks(model, [[0]], gen_length=40, temperature=1.0).ids.shape == (1, 41)  # beyond the length of training


def test_speculation_that_can_be_none_is_refused():
    with pytest.raises(ValueError, match="was not trained in blocks"): speculate_blocks(tiny(None), [[0]])
    with pytest.raises(ValueError, match="position vectors"): speculate_blocks(tiny(2, position_embedding=True), [[0]])
    with pytest.raises(ValueError, match="block_length is 1, and the model was trained in blocks of 2"): speculate_blocks(tiny(2, block_lengths=()), [[0]])
    with pytest.raises(ValueError, match="single tokens alone"): speculate_blocks(tiny(1, block_lengths=()), [[0]])
    with pytest.raises(ValueError, match="draft_length is 0"): speculate_blocks(tiny(2), [[0]], 0)
    with pytest.raises(ValueError, match="temperature is -1"): speculate_blocks(tiny(2), [[0]], gen_length=3, temperature=-1)
