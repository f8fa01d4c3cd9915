"""The rules of decoding: what each promises, what it reduces to, and what is refused."""
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from shimmer.decoding import KLASS, RULES, Ancestral, Blockwise, ConfidenceFactor, ConfidenceThreshold, DiffusersScheduler, DrawnFirst, FirstHitting, GuidedRemasking, HiddenJudge, KeepTheBest, Margin, PathPlanning, ReMDM
from shimmer.likelihood import duel_nll
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import EIGHT_SENTENCES, ExactDenoiser
from shimmer.policies import EntropyBound, ThresholdRemasking, TopK
from shimmer.samplers import refine
from shimmer.tokenizers import WordTokenizer

V, MASK, PAD, L = 7, 7, 6, 10
ADAPTIVE = [EntropyBound(0.1), EntropyBound(2.0), ConfidenceThreshold(0.3), ConfidenceFactor(1.5), Margin(0.1), KLASS(0.2, 0.5)]
WRITING = [*ADAPTIVE, TopK(), TopK(k=2), TopK("cosine", "margin"), FirstHitting(), Ancestral(), Ancestral("cosine"), DrawnFirst(), Blockwise(EntropyBound(2.0), 3), Blockwise(TopK(k=1), 4), Blockwise(KLASS(0.2, 0.5), 4)]
REOPENING = [ThresholdRemasking(0.3, 0.1), ReMDM("cap", 0.3), ReMDM("rescale", 0.5), ReMDM("conf"), PathPlanning(), PathPlanning(2.0, "head"), PathPlanning(0.0), KeepTheBest(), GuidedRemasking(0.5, 2, None), GuidedRemasking(0.0, 2, None), GuidedRemasking(0.6, 3, 2.0), GuidedRemasking(0.6, 3, 2.0, "head"), GuidedRemasking(), Blockwise(ThresholdRemasking(0.3, 0.1), 4)]
EVERY = WRITING + REOPENING


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LatentCanvasModel(LatentCanvasConfig(V, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=L, pad_token_id=PAD)).eval()
    with torch.no_grad():
        for p in made.parameters(): p.mul_(3.0)
    return made


def canvases():
    "A prompt, a gap, a prompt with pads behind, and nothing."
    ids = torch.full((4, L), MASK)
    ids[0, :3] = torch.tensor([1, 2, 3])
    ids[1, [0, 1, 8, 9]] = torch.tensor([4, 0, 5, 1])
    ids[2, :2], ids[2, 7:] = torch.tensor([3, 3]), PAD
    return ids


@pytest.mark.parametrize("policy", EVERY, ids=str)
@pytest.mark.parametrize("num_steps", [1, 3, 30])
def test_what_is_given_stays_every_mask_is_filled_and_the_budget_holds(model, policy, num_steps):
    ids = canvases()
    run = refine(model, ids, policy, num_steps, seed=3)
    given = ids != MASK
    assert run.ids[given].equal(ids[given]) and (run.ids != MASK).all() and (run.ids[~given] < PAD).all()
    assert run.num_calls.max() <= num_steps and set(run.stop_reason) <= {"canvas full", "nothing changes", "calls used up"}


@pytest.mark.parametrize("policy", EVERY, ids=str)
def test_a_row_is_written_alone_as_in_company(model, policy):
    ids = canvases()
    run = refine(model, ids, policy, 12, seed=3)
    for row in range(4):
        own = refine(model, ids[row : row + 1], policy, 12, seed=3 + row)
        assert own.ids.equal(run.ids[row : row + 1]) and own.num_calls.equal(run.num_calls[row : row + 1])
    assert refine(model, ids, policy, 12, seed=3, record=False).ids.equal(run.ids)


@pytest.mark.parametrize("policy", [EntropyBound(0.0), ConfidenceThreshold(1.0), ConfidenceFactor(0.0), Margin(1.0), KLASS(1.0, 0.0), TopK(k=1), FirstHitting(), Blockwise(EntropyBound(9.0), 1)], ids=str)
def test_the_strictest_setting_is_one_token_a_call(model, policy):
    ids = canvases()
    run = refine(model, ids, policy, 20)
    assert run.num_calls.equal((ids == MASK).sum(1)) and (run.written.sum(2) <= 1).all()


@pytest.mark.parametrize("loose, strict", [(EntropyBound(9.0), EntropyBound(0.3)), (ConfidenceThreshold(0.1), ConfidenceThreshold(0.5)), (ConfidenceFactor(9.0), ConfidenceFactor(0.9)), (Margin(0.0), Margin(0.3)), (KLASS(0.1, 9.0), KLASS(0.4, 0.1))], ids=str)
def test_looser_settings_take_fewer_calls(model, loose, strict):
    calls = [refine(model, canvases(), policy, 20).num_calls.sum() for policy in (loose, strict)]
    assert calls[0] < calls[1] <= (canvases() == MASK).sum()


def test_the_entropy_bound_writes_the_longest_prefix_that_fits(model):
    ids, seen = canvases(), []
    class Watched(EntropyBound):
        def __call__(self, view):
            action = super().__call__(view)
            seen.append((view.entropy, view.masked, action.write))
            return action
    refine(model, ids, Watched(1.7), 30)
    sizes = set()
    for entropy, masked, write in seen:
        for h, m, w in zip(entropy, masked, write):
            if not m.any(): continue
            h, n = h[m].sort().values, int(w.sum())
            fits = [k for k in range(1, len(h) + 1) if h[:k].sum() - h[:k].max() <= 1.7 + 1e-9]
            assert n == max(fits) and torch.isclose(h[:n].sum(), entropy[0].new_tensor(0) + h[:n].sum())
            sizes.add(n)
    assert len(sizes) > 1


def test_the_factor_is_that_of_the_definition(model):
    ids, sizes = canvases(), set()
    class Watched(ConfidenceFactor):
        def __call__(self, view):
            action = super().__call__(view)
            for p, m, w in zip(view.max_prob, view.masked, action.write):
                if not m.any(): continue
                p = p[m].sort(descending=True).values
                fits = [n for n in range(1, len(p) + 1) if (n + 1) * (1 - p[n - 1]) < self.factor]
                assert int(w.sum()) == max(fits, default=1)
                sizes.add(int(w.sum()))
            return action
    refine(model, ids, Watched(5.0), 30)
    assert len(sizes) > 1


def test_klass_asks_about_the_call_before(model):
    asked = []
    class Watched(KLASS):
        def __call__(self, view):
            asked.append((view.step, view.divergence[view.masked].clone(), view.before is None))
            return super().__call__(view)
    refine(model, canvases(), Watched(0.9, 0.01), 30)
    assert asked[0][2] and asked[0][1].isinf().all()
    later = torch.cat([divergence for step, divergence, _ in asked if step])
    assert later.isfinite().all() and (later >= -1e-9).all() and later.max() > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_remdm_that_takes_nothing_back_is_the_ancestral_sampler(model, schedule):
    for strategy in ("cap", "rescale", "conf"):
        ours, theirs = (refine(model, canvases(), policy, 9, seed=5) for policy in (ReMDM(strategy, 0.0, schedule), Ancestral(schedule)))
        assert ours.ids.equal(theirs.ids)


@pytest.mark.parametrize("strategy, eta", [("cap", 0.2), ("rescale", 0.4)])
def test_remdm_leaves_as_many_masks_as_the_schedule(model, strategy, eta):
    ids = torch.full((400, L), MASK)
    run = refine(model, ids, ReMDM(strategy, eta), 8)
    left = (run.canvases == MASK).double().mean((1, 2))
    torch.testing.assert_close(left, 1 - torch.arange(9).double() / 8, atol=0.03, rtol=0)
    assert run.reopened.any()


def test_path_planning_of_strength_0_takes_nothing_back_and_of_1_keeps_the_best(model):
    assert not refine(model, canvases(), PathPlanning(0.0), 9).reopened.any()
    ours, theirs = (refine(model, canvases(), policy, 9, seed=1) for policy in (PathPlanning(1.0), KeepTheBest()))
    assert ours.ids.equal(theirs.ids) and ours.reopened.any()


def exact_world():
    tokenizer = WordTokenizer.train(EIGHT_SENTENCES)
    return ExactDenoiser(EIGHT_SENTENCES, tokenizer).double()


@pytest.mark.parametrize("policy", [FirstHitting(), TopK(k=1), EntropyBound(0.0), Blockwise(TopK(k=1), 4)], ids=str)
def test_one_position_a_call_writes_the_models_distribution(policy):
    exact = exact_world()
    n = exact.config.max_seq_len
    run = refine(exact, torch.full((4000, n), exact.config.mask_token_id), policy, n, temperature=1.0, seed=7, record=False)
    counts = (run.ids[:, None] == exact.texts).all(-1).sum(0).double()
    assert counts.sum() == 4000 and chisquare(counts.numpy(), (4000 * exact.p / exact.p.sum()).numpy()).pvalue > 1e-4


def test_ranking_what_was_drawn_writes_another_distribution():
    exact = exact_world()
    n = exact.config.max_seq_len
    run = refine(exact, torch.full((4000, n), exact.config.mask_token_id), DrawnFirst(), n, temperature=1.0, seed=7, record=False)
    counts = (run.ids[:, None] == exact.texts).all(-1).sum(0).double()
    assert chisquare(counts.numpy(), (counts.sum() * exact.p / exact.p.sum()).numpy()).pvalue < 1e-6


def test_confidence_is_that_of_the_untempered_model(model):
    cold, warm = (refine(model, canvases(), ConfidenceThreshold(0.5), 20, temperature=t) for t in (0.01, 1.0))
    assert cold.written[0].equal(warm.written[0])


def test_a_hidden_judge_does_not_see_what_it_judges(model):
    ids = torch.randint(PAD, (2, L), generator=torch.Generator().manual_seed(0))
    ids[0, 3:5] = MASK
    judge = HiddenJudge(model, num_groups=L)  # each token by all others
    said = judge.denoise(ids)
    assert said.logits.equal(model.denoise(ids).logits)
    for row, column in ((0, 0), (1, 4), (1, 9)):
        hidden = ids.clone()
        hidden[row, column] = MASK
        p = model.denoise(hidden).logits[row, column].softmax(-1)[ids[row, column]]
        torch.testing.assert_close(said.confidence[row, column], p)
    at = torch.zeros_like(ids, dtype=torch.bool)
    at[1, 2] = True
    torch.testing.assert_close(judge.denoise(ids, at=at).confidence, said.confidence[at])


def test_a_hidden_judge_is_a_head_for_policies(model):
    run = refine(HiddenJudge(model), canvases(), PathPlanning(judge="head"), 9)
    assert (run.ids != MASK).all() and run.reopened.any()


@pytest.mark.parametrize("policy", [EntropyBound(0.5), ConfidenceThreshold(0.3), ConfidenceFactor(1.0), Margin(0.2)], ids=str)
def test_rules_that_look_at_the_canvas_alone_have_a_likelihood(policy):
    exact = exact_world()
    nats = duel_nll(exact, exact.texts, policy)
    assert nats.isfinite().all() and RULES[type(policy).__name__].duel and (-nats).exp().sum() <= 1 + 1e-9


@pytest.mark.parametrize("policy, reason", [(KLASS(), "remembers before"), (ReMDM(), "reopens"), (FirstHitting(), "chance"), (Ancestral(), "chance")], ids=str)
def test_a_rule_without_a_likelihood_is_refused(policy, reason):
    exact = exact_world()
    assert not RULES[type(policy).__name__].duel
    with pytest.raises(ValueError, match=reason): duel_nll(exact, exact.texts, policy)


@pytest.mark.parametrize("make, message", [
    (lambda: EntropyBound(-0.1), "gamma is -0.1: give 0 nats or more"), (lambda: GuidedRemasking(gamma=-0.1), "gamma is -0.1: give 0 nats or more"), (lambda: GuidedRemasking(judge="nobody"), "judge 'nobody' is unknown: choose standing or head"), (lambda: EntropyBound(math.nan), "gamma is nan"), (lambda: ConfidenceThreshold(1.5), r"threshold is 1.5: give a number in \[0, 1\]"),
    (lambda: ConfidenceFactor(-1), "factor is -1"), (lambda: Margin(2), "margin is 2"), (lambda: KLASS(2), "confidence is 2"), (lambda: KLASS(0.9, -1), "kl is -1"), (lambda: TopK(k=0), "k is 0"),
    (lambda: Blockwise(EntropyBound(), 0), "block_length is 0"), (lambda: Blockwise(TopK()), "follows a schedule"), (lambda: Blockwise(Ancestral()), "follows a schedule"), (lambda: ReMDM(eta=2), "eta is 2"),
    (lambda: ReMDM("often"), "'often' is unknown: choose cap, rescale, conf"), (lambda: PathPlanning(-1), "strength is -1"), (lambda: PathPlanning(judge="me"), "judge 'me' is unknown"),
    (lambda: HiddenJudge(exact_world(), 0), "num_groups is 0")])
def test_values_that_make_no_policy_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_a_judge_by_head_needs_a_head():
    exact = exact_world()
    with pytest.raises(ValueError, match="no confidence head"): refine(exact, torch.full((1, 9), exact.config.mask_token_id), PathPlanning(judge="head"), 4)


def test_every_rule_is_in_the_table():
    assert set(RULES) == {type(policy).__name__ for policy in EVERY}
    for policy in WRITING: assert not policy.reopens
    assert replace(EntropyBound(), gamma=1.0).gamma == 1.0


def unlike_positions():
    "A canvas with a vector for each position, so that no two of them are equally sure: of equals ours takes the one further left."
    torch.manual_seed(0)
    model = LatentCanvasModel(LatentCanvasConfig(V, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=L, pad_token_id=PAD, position_embedding=True)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(3.0)
    return model


def write_the_same(ours, theirs, calls):
    model, counts = unlike_positions(), set()
    for temperature in (0.0, 0.7, 1.0):
        a, b = (refine(model, canvases(), policy, calls, temperature, seed=2) for policy in (ours, theirs))
        assert a.ids.equal(b.ids) and a.canvases.equal(b.canvases) and a.num_calls.equal(b.num_calls)
        counts |= set(a.num_calls.tolist())
    return counts


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.7])
def test_a_scheduler_of_diffusers_writes_the_same(gamma):
    EntropyBoundScheduler = pytest.importorskip("diffusers").EntropyBoundScheduler
    write_the_same(EntropyBound(gamma), DiffusersScheduler(EntropyBoundScheduler(entropy_bound=gamma, t_min=1.0, t_max=1.0, num_inference_steps=20)), 20)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_block_refinement_of_diffusers_writes_the_same(threshold):
    "With a call for each position their schedule asks for one a call at least, as ours does."
    scheduler = pytest.importorskip("diffusers").BlockRefinementScheduler(block_length=L, num_inference_steps=L, threshold=threshold)
    scheduler.set_timesteps(L, block_length=L)
    counts = write_the_same(ConfidenceThreshold(threshold), DiffusersScheduler(scheduler), L)
    assert threshold > 0.5 or min(counts) < L


def test_block_refinement_of_diffusers_is_done_in_time():
    scheduler = pytest.importorskip("diffusers").BlockRefinementScheduler(block_length=L, threshold=1.0)
    run = refine(unlike_positions(), canvases(), DiffusersScheduler(scheduler), 5, seed=2)  # no schedule set: it picks nothing below its threshold
    assert not (run.ids == unlike_positions().config.mask_token_id).any() and (run.num_calls <= 5).all()


def test_what_is_no_scheduler_is_refused():
    with pytest.raises(ValueError, match="which has no step"): DiffusersScheduler(EntropyBound())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 5.0])
def test_guided_by_nobody_an_entropy_bound_is_an_entropy_bound(model, gamma):
    ids, plain = canvases(), refine(model, canvases(), EntropyBound(gamma), 30, seed=5)
    run = refine(model, ids, GuidedRemasking(0.0, gamma=gamma), 30, seed=5)
    assert run.ids.equal(plain.ids) and not run.reopened.any()


def test_a_head_takes_back_what_a_bold_bound_has_written(model):
    "Everything is written in the first call, and the three positions that the head holds for worst are opened again."
    ids = torch.full((2, L), MASK)
    run = refine(model, ids, GuidedRemasking(1.0, 3, 100.0, "head"), 6, seed=5)
    assert (run.canvases[1] != MASK).all() and run.reopened[1:5].sum(2).eq(3).any() and (run.ids != MASK).all()
    held = model.denoise(run.canvases[1]).confidence
    assert run.reopened[1].nonzero()[:3, 1].sort().values.equal(held[0].topk(3, largest=False).indices.sort().values)


@pytest.mark.parametrize("policy", [GuidedRemasking(judge="head"), PathPlanning(judge="head")], ids=str)
def test_a_judge_that_the_model_does_not_have_is_refused(policy):
    exact = ExactDenoiser(EIGHT_SENTENCES, WordTokenizer.train(EIGHT_SENTENCES))
    with pytest.raises(ValueError, match="the model has no confidence head: choose standing"):
        refine(exact, torch.full((1, exact.config.max_seq_len), exact.config.mask_token_id), policy, 5)
