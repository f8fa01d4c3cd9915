"""The loop's promises for every policy, orders that are exact, and requests that are refused."""
import itertools
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

import shimmer.samplers
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import Prediction, keep_rows
from shimmer.policies import Order, RefineGate, Schedule, ThresholdRemasking, TopK, UnmaskAction, top_positions
from shimmer.samplers import Trajectory, generate_topk, generate_with_remasking, make_canvas, refine

ORDERS, SCHEDULES = Order.__args__, Schedule.__args__
WORDS, PAD, EOS, MASK = 6, 6, 7, 8  # ids 0..5 are words


class World(nn.Module):
    "The exact denoiser of a list of equally long rows with probabilities; it may have a confidence head, and counts its calls."

    def __init__(self, rows, p, head=None, pad=PAD, mask=MASK):
        super().__init__()
        self.rows, self.p, self.head = torch.tensor(rows), torch.tensor(p, dtype=torch.float64), head
        self.p /= self.p.sum()
        self.calls = 0
        self.config = SimpleNamespace(vocab_size=max(8, mask + 1 if mask < 8 else 8), mask_token_id=mask, pad_token_id=pad, max_seq_len=self.rows.shape[1])

    def denoise(self, ids, state=None, at=None):
        assert state == (self.calls or None) and not self.training
        self.calls += 1
        known = (ids != self.config.mask_token_id) & (ids != PAD)
        rows = self.rows[:, : ids.shape[1]]
        wrong = ((ids[:, None] != rows) & known[:, None]).sum(-1)
        weight = self.p * (wrong == wrong.amin(1, keepdim=True))
        share = torch.einsum("bn,nlv->blv", weight / weight.sum(1, keepdim=True), F.one_hot(rows, self.config.vocab_size).double())
        return Prediction(share.log(), None if self.head is None else self.head(ids), self.calls).at(at)


def hashed_confidence(ids):
    "A head whose confidence depends on the canvas and the place in no particular way, row by row."
    place = torch.arange(ids.shape[1])
    return (torch.sin(ids.cumsum(1) * 12.9898 + place * 78.233) * 43758.5453) % 1


def sentences():
    return World([[0, 1, 2, 3, EOS], [0, 4, 2, 5, EOS], [3, 1, EOS, EOS, EOS], [3, 4, 0, 5, EOS], [5, 4, 0, EOS, EOS], [5, 1, 2, 3, EOS]],
                 [0.3, 0.2, 0.15, 0.15, 0.1, 0.1])


def lira(dtype=torch.float64, seed=0, **kwargs):
    "A small random LIRA in float64, sharpened so that its predictions differ from place to place."
    model = LatentCanvasModel(LatentCanvasConfig(vocab_size=8, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=12, pad_token_id=PAD, **kwargs)).to(dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for q in model.parameters():
            if q.ndim == 2: q.copy_(torch.randn(q.shape, generator=g) * 0.5)
    return model


class Rewrite:
    "A policy of chance that writes anywhere open, reopens anywhere open, and asks for closed positions too."
    reopens = True

    def __call__(self, view):
        assert not (view.masked & ~view.editable).any() and (view.ids[view.masked] == MASK).all()
        return UnmaskAction(view.noise < 0.4, view.noise > 0.7)


finishing = st.one_of(
    st.builds(TopK, st.sampled_from(SCHEDULES), st.sampled_from(ORDERS)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda t: ThresholdRemasking(max(t), min(t))))
temperatures = st.one_of(st.just(0.0), st.floats(0.05, 3.0))
seeds = st.integers(0, 10_000)


@st.composite
def canvases(draw, rows=st.integers(1, 4)):
    "Words, ends, masks and pads anywhere."
    n, length = draw(rows), draw(st.integers(1, 5))
    token = st.sampled_from([0, 1, 2, 3, 4, 5, EOS, MASK, MASK, MASK, MASK, PAD])
    return torch.tensor(draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=n, max_size=n)))


@st.composite
def tasks(draw):
    "A canvas, and perhaps which of its tokens are given."
    canvas = draw(canvases())
    keep = draw(st.none() | st.lists(st.booleans(), min_size=canvas.numel(), max_size=canvas.numel()))
    return canvas, None if keep is None else torch.tensor(keep).view(canvas.shape) & (canvas != MASK)


def same(a: Trajectory, b: Trajectory, row_a=0, row_b=0, length=None):
    "Whether two rows were written alike, call by call."
    n = int(a.num_calls[row_a])
    assert n == b.num_calls[row_b] and a.stop_reason[row_a] == b.stop_reason[row_b]
    assert torch.equal(a.canvases[: n + 1, row_a, :length], b.canvases[: n + 1, row_b, :length])
    torch.testing.assert_close(a.confidence[:n, row_a, :length], b.confidence[:n, row_b, :length])


# The loop

@settings(max_examples=150)
@given(tasks(), finishing, st.integers(1, 9), temperatures, seeds, st.booleans(), st.booleans())
def test_what_every_policy_keeps(task, policy, num_steps, temperature, seed, stops, has_head):
    (canvas, fixed), model = task, sentences()
    if has_head: model.head = hashed_confidence
    before = canvas.clone()
    run = refine(model, canvas, policy, num_steps, temperature, seed, fixed=fixed, eos_token_id=EOS if stops else None)
    given_ = run.fixed
    assert torch.equal(canvas, before) and torch.equal(run.canvases[0], canvas) and torch.equal(run.canvases[-1], run.ids)
    assert torch.equal(given_, (canvas != MASK if fixed is None else fixed) | (canvas == PAD))
    assert (run.canvases[:, given_] == canvas[given_]).all()
    assert not (run.ids == MASK).any()
    assert ((run.ids == PAD) == (canvas == PAD)).all() and not (run.canvases[1:][run.written] == PAD).any()
    assert len(run.canvases) == len(run.confidence) + 1 == model.calls + 1 and model.calls == run.num_calls.max() <= num_steps
    assert ((run.confidence >= 0) & (run.confidence <= 1 + 1e-6)).all()
    for row, (n, reason) in enumerate(zip(run.num_calls.tolist(), run.stop_reason)):
        assert (run.canvases[n:, row] == run.ids[row]).all() and (run.confidence[n:, row] == 1).all()
        assert (n == 0) == (reason == "nothing to write")
        if reason == "canvas full": assert not policy.reopens and (run.canvases[n - 1, row] == MASK).any()
        if reason == "nothing changes": assert policy.reopens and torch.equal(run.canvases[n - 1, row], run.canvases[n, row])
        if reason == "calls used up": assert n == num_steps
    if not policy.reopens:
        written = (canvas != MASK) & ~given_
        assert (run.canvases[:, written] == canvas[written]).all() and not run.reopened.any()
        assert (run.written.sum((1, 2)) > 0).all()


@given(tasks(), st.integers(1, 6), seeds)
def test_no_policy_can_touch_what_is_given(task, num_steps, seed):
    canvas, fixed = task
    run = refine(sentences(), canvas, Rewrite(), num_steps, seed=seed, fixed=fixed)
    assert (run.canvases[:, run.fixed] == canvas[run.fixed]).all()
    assert not (run.canvases[1:][run.written] == PAD).any()


@settings(max_examples=60)
@given(canvases(st.integers(2, 4)), finishing, st.integers(1, 9), temperatures, seeds, st.data())
def test_a_row_is_the_same_in_any_company(canvas, policy, num_steps, temperature, seed, data):
    together = refine(sentences(), canvas, policy, num_steps, temperature, seed, eos_token_id=EOS)
    row = data.draw(st.integers(0, len(canvas) - 1))
    alone = refine(sentences(), canvas[row : row + 1], policy, num_steps, temperature, seed + row, eos_token_id=EOS)
    same(alone, together, 0, row)
    order = torch.tensor(data.draw(st.permutations(range(len(canvas)))))
    if temperature == 0 and getattr(policy, "order", None) != "random":
        assert torch.equal(refine(sentences(), canvas[order], policy, num_steps, 0.0, seed, eos_token_id=EOS).ids, together.ids[order])
    again = refine(sentences(), canvas, policy, num_steps, temperature, seed, eos_token_id=EOS)
    for i in range(len(canvas)): same(again, together, i, i)


@given(canvases(), seeds, seeds, st.sampled_from([o for o in ORDERS if o != "random"]), st.integers(1, 5))
def test_temperature_zero_needs_no_seed(canvas, seed, other, order, num_steps):
    a, b = (refine(sentences(), canvas, TopK(order=order), num_steps, 0.0, s).ids for s in (seed, other))
    assert torch.equal(a, b)


def test_other_seeds_give_other_texts():
    texts = {tuple(refine(sentences(), torch.full((1, 5), MASK), TopK(), 5, seed=seed).ids[0].tolist()) for seed in range(40)}
    assert len(texts) > 3


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 6), seeds, st.sampled_from(SCHEDULES), st.sampled_from(ORDERS), st.sampled_from(["topk", "remask"]))
def test_unequal_prompts_equal_single_ones_through_a_network(lengths, gen_length, seed, schedule, order, kind):
    model = lira()
    prompts = [[(3 * i + j) % WORDS for j in range(n)] for i, n in enumerate(lengths)]
    def generate(rows, seed):
        if kind == "topk": return generate_topk(model, rows, gen_length, num_steps=4, temperature=1.0, seed=seed, schedule=schedule, order=order)
        return generate_with_remasking(model, rows, gen_length, num_steps=6, temperature=1.0, seed=seed, threshold=0.6, remask_threshold=0.5)
    together = generate(prompts, seed)
    for i, prompt in enumerate(prompts):
        width = len(prompt) + gen_length
        same(generate([prompt], seed + i), together, 0, i, width)
        assert (together.ids[i, width:] == PAD).all() and together.ids[i, : len(prompt)].tolist() == prompt


def test_state_is_carried_and_the_mode_restored():
    model = lira(carry_latent=True)
    seen = []
    denoise = model.denoise
    model.denoise = lambda ids, state=None: (seen.append(state), denoise(ids, state))[1]
    for mode in (True, False):
        model.train(mode)
        refine(model, torch.full((2, 4), 8), TopK(), 3)
        assert model.training == mode
        with pytest.raises(ValueError): refine(model, torch.full((2, 4), 8), TopK(order="best"), 3)
        assert model.training == mode
    assert seen[0] is None and seen[1].shape == (2, 4, 16)


def test_models_without_a_pad_and_with_the_mask_inside_the_vocabulary():
    model = World([[0, 1, 2], [1, 2, 0]], [0.5, 0.5], mask=3)
    del model.config.pad_token_id
    run = generate_topk(model, [[], []])
    assert set(map(tuple, run.ids.tolist())) <= {(0, 1, 2), (1, 2, 0)} and run.pad_token_id is None


def test_mask_and_pad_are_never_drawn_whatever_the_model_says():
    model = World([[PAD, 3, PAD]], [1.0], mask=3)
    model.denoise = lambda ids, state=None: Prediction(torch.tensor([-9.0] * 3 + [9.0] + [-9.0] * 2 + [9.0, -9.0]).expand(*ids.shape, 8))
    for seed in range(20):
        for policy in (TopK(), ThresholdRemasking()):
            ids = refine(model, torch.full((4, 3), 3), policy, 3, seed=seed).ids
            assert not ((ids == 3) | (ids == PAD)).any()


def test_the_recorded_confidence_is_of_the_token_that_stands_or_is_written():
    model = World([[0, 1], [2, 1], [2, 3]], [0.5, 0.3, 0.2])
    run = refine(model, torch.full((1, 2), MASK), TopK(order="left_to_right"), 2, temperature=0.0)
    assert run.ids.tolist() == [[0, 1]]
    torch.testing.assert_close(run.confidence[:, 0], torch.tensor([[0.5, 0.8], [1.0, 1.0]]))
    model = World([[0, 1], [2, 1], [2, 3]], [0.5, 0.3, 0.2], head=hashed_confidence)
    run = refine(model, torch.full((1, 2), MASK), TopK(), 2)
    assert torch.equal(run.confidence[0], hashed_confidence(run.canvases[0])) and torch.equal(run.confidence[1], hashed_confidence(run.canvases[1]))


def test_low_precision_logits_are_decided_in_float64():
    seen = []
    class Look:
        reopens = False
        def __call__(self, view): seen.append(view); return UnmaskAction(view.masked)
    model = lira(torch.bfloat16)
    refine(model, torch.full((1, 3), 8), Look(), 1)
    view = seen[0]
    assert view.log_probs.dtype == view.noise.dtype == view.standing_prob.dtype == view.max_prob.dtype == torch.float64
    torch.testing.assert_close(view.log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)


# The end of a text

@given(seeds, st.sampled_from(ORDERS), st.integers(1, 5))
def test_masks_behind_a_written_end_become_it_and_cost_no_calls(seed, order, num_steps):
    model = sentences()
    run = refine(model, torch.full((6, 5), MASK), TopK(order=order), num_steps, seed=seed, eos_token_id=EOS)
    for canvas in run.canvases[1:]:
        behind = (canvas == EOS).int().cummax(1).values.bool()
        assert not ((canvas == MASK) & behind).any()


def test_an_end_saves_calls_and_a_given_end_ends_nothing():
    model = sentences()
    runs = [refine(sentences(), torch.full((50, 5), MASK), TopK(order="left_to_right"), 5, eos_token_id=end) for end in (EOS, None)]
    assert torch.equal(runs[0].ids, runs[1].ids) and runs[0].num_calls.min() == 3 and (runs[1].num_calls == 5).all()
    run = refine(model, torch.tensor([[MASK, EOS, MASK, MASK, MASK]]), TopK(order="left_to_right"), 5, eos_token_id=EOS)
    assert run.written[0].sum() == 1


def test_texts_stop_at_the_end():
    tokenizer = SimpleNamespace(eos_token_id=EOS, decode=lambda ids: "".join("abcdef"[i] for i in ids))
    ids = torch.tensor([[0, 1, EOS, 2], [2, MASK, 3, PAD], [EOS, 0, 0, 0]])
    for end in (EOS, None):
        run = Trajectory(ids, ids[None], torch.zeros(0, *ids.shape), ids >= 0, torch.zeros(3), [""] * 3, MASK, PAD, end)
        assert run.texts(tokenizer) == ["ab", "cd", ""]


# Infilling and editing

@given(st.integers(0, 5), st.sets(st.integers(0, 4)), seeds, st.sampled_from(ORDERS))
def test_holes_anywhere_are_filled_with_what_fits(row, holes, seed, order):
    model = sentences()
    canvas = model.rows[row : row + 1].clone()
    canvas[0, list(holes)] = MASK
    run = refine(model, canvas, TopK(order=order), 5, seed=seed)
    assert run.ids[0].tolist() in model.rows.tolist() and torch.equal(run.ids[run.fixed], canvas[run.fixed])


@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, WORDS - 1), seeds)
def test_editing_mends_a_canvas_without_masks(row, place, word, seed):
    model = sentences()
    canvas = model.rows[row : row + 1].clone()
    canvas[0, place] = word
    run = refine(model, canvas, ThresholdRemasking(), 12, seed=seed, fixed=torch.zeros_like(canvas, dtype=torch.bool))
    wrong = (canvas != model.rows).sum(1)
    if (wrong == wrong.min()).sum() == 1: assert run.ids[0].tolist() == model.rows[wrong.argmin()].tolist()  # one sentence comes closest
    kept = refine(sentences(), canvas, ThresholdRemasking(), 12, seed=seed, fixed=torch.arange(5)[None] == place)
    assert kept.ids[0, place] == word


def test_without_leave_nothing_written_is_edited():
    canvas = torch.tensor([[0, 1, 2, 5, EOS]])
    for policy in (TopK(), ThresholdRemasking()):
        run = refine(sentences(), canvas, policy, 4)
        assert torch.equal(run.ids, canvas) and run.stop_reason == ["nothing to write"] and run.canvases.shape == (1, 1, 5) and run.confidence.shape == (0, 1, 5)


# Policies

@given(st.floats(0, 1), st.floats(0, 1), canvases(), seeds)
def test_remasking_acts_on_its_thresholds(a, b, canvas, seed):
    policy, num_steps = ThresholdRemasking(max(a, b), min(a, b)), 6
    model = World(sentences().rows.tolist(), sentences().p.tolist(), head=hashed_confidence)
    run = refine(model, canvas, policy, num_steps, seed=seed, fixed=canvas == PAD if not (canvas == MASK).any() else None)
    for s in range(len(run.confidence)):
        for row in range(len(canvas)):
            if s >= run.num_calls[row]: continue
            held, was_mask = hashed_confidence(run.canvases[s])[row].double(), run.canvases[s, row] == MASK
            if s + 1 == num_steps: assert not run.reopened[s, row].any(); continue
            assert torch.equal(run.reopened[s, row], ~was_mask & ~run.fixed[row] & (held < policy.remask_threshold))
            above = was_mask & (held > policy.threshold)
            extra = run.written[s, row] & ~above
            assert (run.written[s, row] | ~above).all() and extra.sum() <= 1
            if was_mask.any(): assert run.written[s, row].any()


# Distributions

def chance(model, ids):
    "The probability that a right sampler is so far off (Pearson); all rows must be the world's."
    hits = (ids[:, None] == model.rows).all(-1).double().sum(0)
    assert hits.sum() == len(ids)
    chi2 = ((hits - len(ids) * model.p) ** 2 / (len(ids) * model.p)).sum()
    return float(torch.special.gammaincc(torch.tensor((len(model.p) - 1) / 2, dtype=torch.float64), chi2 / 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("end", [EOS, None])
def test_one_token_a_call_is_exact_in_any_order_chosen_from_the_canvas(order, end):
    model = sentences()
    assert chance(model, refine(model, torch.full((3000, 5), MASK), TopK(order=order), 5, seed=11, eos_token_id=end).ids) > 1e-3


def test_ranking_drawn_tokens_is_not_exact():
    class DrawnFirst:
        reopens = False
        def __call__(self, view): return UnmaskAction(top_positions(view.standing_prob, view.masked, torch.ones_like(view.num_masked)))
    model = sentences()
    assert chance(model, refine(model, torch.full((3000, 5), MASK), DrawnFirst(), 5, seed=11).ids) < 1e-6


def test_all_at_once_is_the_product_of_the_marginals():
    model = World([[0, 0], [1, 1]], [0.5, 0.5])
    ids = refine(model, torch.full((4000, 2), MASK), TopK(), 1).ids
    share = torch.stack([(ids == torch.tensor(pair)).all(1).double().mean() for pair in itertools.product((0, 1), repeat=2)])
    assert (share - 0.25).abs().max() < 0.03


# What is refused

NO_PAD = World([[0, 1, 2, 3]], [1.0], pad=None)

@pytest.mark.parametrize("ask, words", [
    (lambda m: generate_topk(m, [[0] * 5]), "5 tokens, the canvas holds 5"),
    (lambda m: generate_topk(m, [[0] * 9], gen_length=1), "9 tokens, the canvas holds 5"),
    (lambda m: generate_topk(m, [[0, 1]], gen_length=4), "gen_length can be 3 at most"),
    (lambda m: generate_topk(m, [[0]], gen_length=0), "gen_length is 0"),
    (lambda m: generate_topk(m, [[0]], gen_length=-2), "gen_length is -2"),
    (lambda m: generate_topk(m, []), "at least one row"),
    (lambda m: generate_topk(m, [0, 1]), "list of rows"),
    (lambda m: generate_topk(m, torch.tensor([0, 1])), "list of rows"),
    (lambda m: generate_topk(m, [[0]], num_steps=0), "num_steps is 0"),
    (lambda m: generate_topk(m, [[0]], temperature=-0.1), "temperature is -0.1"),
    (lambda m: generate_topk(m, [[0]], temperature=math.nan), "temperature is nan"),
    (lambda m: generate_topk(m, [[0]], temperature=math.inf), "temperature is inf"),
    (lambda m: generate_topk(m, [[9]]), "token 9, the model knows 0 to 8"),
    (lambda m: generate_topk(m, [[-1]]), "token -1, the model knows 0 to 8"),
    (lambda m: generate_topk(m, [[0]], order="best"), "order 'best'"),
    (lambda m: generate_topk(m, [[0]], schedule="square"), "schedule 'square'"),
    (lambda m: generate_topk(NO_PAD, [[0], [0, 1]], gen_length=1), "1 to 2 tokens need a pad token"),
    (lambda m: generate_with_remasking(m, [[0]], threshold=1.5), "threshold is 1.5"),
    (lambda m: generate_with_remasking(m, [[0]], remask_threshold=-0.5), "remask_threshold is -0.5"),
    (lambda m: generate_with_remasking(m, [[0]], threshold=math.nan), "threshold is nan"),
    (lambda m: generate_with_remasking(m, [[0]], threshold=0.2, remask_threshold=0.3), "0.3 exceeds threshold 0.2"),
    (lambda m: generate_with_remasking(m, [[0]], num_steps=0), "num_steps is 0"),
    (lambda m: refine(m, torch.full((1, 6), MASK), TopK(), 1), "6 positions, max_seq_len is 5"),
    (lambda m: refine(m, torch.full((5,), MASK), TopK(), 1), "give [B, L]"),
    (lambda m: refine(m, torch.full((0, 5), MASK), TopK(), 1), "give [B, L]"),
    (lambda m: refine(m, torch.full((1, 5), MASK), TopK(), 1, fixed=torch.ones(1, 5, dtype=torch.bool)), "5 fixed positions hold the mask"),
])
def test_refusals_say_what_and_how_to_mend(ask, words):
    model = sentences()
    with pytest.raises(ValueError) as error: ask(model)
    message = str(error.value)
    assert words in message and "\n" not in message and ":" in message
    assert model.calls <= 1


def test_prompts_as_tensor_as_rows_and_empty():
    model = sentences()
    assert torch.equal(make_canvas(model, torch.tensor([[0, 1]])), make_canvas(model, [[0, 1]]))
    assert make_canvas(model, [[], [3]]).tolist() == [[MASK] * 5, [3] + [MASK] * 4]
    assert make_canvas(model, [[], [3, 1]], 2).tolist() == [[MASK, MASK, PAD, PAD], [3, 1, MASK, MASK]]
    assert generate_topk(model, [[0]], gen_length=1).ids.shape == (1, 2)


@pytest.mark.cuda
def test_the_same_text_on_a_gpu():
    model = lira()
    here = generate_topk(model, [[0, 1], [2]], 6, seed=1)
    there = generate_topk(model.cuda(), [[0, 1], [2]], 6, seed=1)
    assert torch.equal(here.ids, there.ids) and there.ids.device.type == "cpu"


@pytest.mark.parametrize("wrong, named", [(dict(fixed=torch.ones(2, 5, dtype=torch.bool)), "fixed has shape"), (dict(eos_token_id=99), "eos_token_id is 99")])
def test_what_does_not_fit_the_canvas_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named): refine(sentences(), torch.full((1, 5), MASK), TopK(), 5, **wrong)


# --- what makes it fast and changes nothing -------------------------------------------------------

@dataclass
class DrawnSurest:
    "A rule that looks at the drawn tokens, which then have all to be drawn before it decides."
    reopens = False

    def __call__(self, view):
        return UnmaskAction(top_positions(view.standing_prob, view.masked, torch.ones_like(view.num_masked)))


POLICIES = [TopK(), TopK("cosine", "margin"), TopK(order="entropy"), TopK(order="random"), ThresholdRemasking(0.6, 0.4), RefineGate(0.3), DrawnSurest()]

@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("options", [{}, dict(carry_latent=True)], ids=["", "carries"])
def test_a_text_is_the_same_whether_its_calls_are_recorded(policy, options):
    model, canvas = lira(**options), torch.full((5, 4), 8)
    canvas[1, :3] = 2
    canvas[2, 0] = 5
    kept, fast = (refine(model, canvas, policy, 6, 0.7, seed=3, eos_token_id=1, record=record) for record in (True, False))
    assert torch.equal(kept.ids, fast.ids) and torch.equal(kept.num_calls, fast.num_calls) and kept.stop_reason == fast.stop_reason
    assert torch.equal(fast.canvases, kept.canvases[[0, -1]]) and fast.confidence.shape[0] == fast.chosen.shape[0] == 0 and torch.equal(fast.fixed, kept.fixed)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("record", [True, False])
def test_a_device_that_is_seldom_asked_writes_the_same(monkeypatch, policy, record):
    model, canvas = lira(carry_latent=True), torch.full((4, 4), 8)
    canvas[1, :3] = 2
    write = lambda: refine(model, canvas, policy, 12, 0.7, seed=1, eos_token_id=1, record=record)
    asked = write()
    monkeypatch.setattr(shimmer.samplers, "waits", lambda device: True)
    seldom = write()
    for name in ("ids", "canvases", "chosen", "num_calls"): assert torch.equal(getattr(asked, name), getattr(seldom, name)), name
    torch.testing.assert_close(asked.confidence, seldom.confidence)  # a product is rounded by the rows beside it
    assert asked.stop_reason == seldom.stop_reason


@pytest.mark.parametrize("policy", [TopK(), ThresholdRemasking(0.6, 0.4)], ids=str)
def test_a_device_is_asked_at_most_once_a_call(monkeypatch, policy):
    "What a GPU has to be waited for: the value of a tensor, or how many of its elements are true."
    from torch.utils._python_dispatch import TorchDispatchMode
    class Questions(TorchDispatchMode):
        number = 0
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asks = function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            bools = function is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
            self.number += asks or bools
            return function(*args, **(kwargs or {}))
    monkeypatch.setattr(shimmer.samplers, "waits", lambda device: True)
    model, counted = lira(), []
    for calls in (8, 16):
        monkeypatch.setattr(shimmer.samplers, "STOP_TEST", calls)
        with Questions() as questions: refine(model, torch.full((2, 4), 8), policy, calls, 0.7, record=False)
        counted.append(questions.number)
    assert 0 < counted[1] - counted[0] <= 8, counted


def test_a_state_is_kept_by_row():
    from collections import namedtuple
    Pair = namedtuple("Pair", "a b")
    x, rows = torch.arange(6).view(3, 2), torch.tensor([2, 0])
    kept = keep_rows({"x": x, "pair": Pair(x, [x, None]), "number": 3}, rows)
    assert torch.equal(kept["x"], x[rows]) and type(kept["pair"]) is Pair and torch.equal(kept["pair"].b[0], x[rows]) and kept["pair"].b[1] is None and kept["number"] == 3
