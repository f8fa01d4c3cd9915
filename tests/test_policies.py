"""Schedules, scores and draws against their definitions, and policies on canvases that are written down."""
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from shimmer.policies import EntropyThreshold, RefineGate, RowNoise, SamplerState, Schedule, ThresholdRemasking, TopK, masked_fraction, sample_categorical, sampling_device, top_positions

SCHEDULES, MASK = Schedule.__args__, 8


# Schedules and ranks

@given(st.integers(1, 200), st.integers(1, 60), st.sampled_from(SCHEDULES))
def test_schedules_write_everything_in_time_and_something_each_call(n, num_steps, schedule):
    masked, written = n, []
    while masked:
        view = SimpleNamespace(step=len(written), num_steps=num_steps, num_masked=torch.tensor([n]), masked=torch.arange(n)[None] < masked,
                               score=lambda order: torch.zeros(1, n))
        written.append(int(TopK(schedule)(view).write.sum()))
        masked -= written[-1]
    assert sum(written) == n and len(written) <= min(n, num_steps) and min(written) >= 1
    if schedule == "linear": assert max(written) - min(written) <= 1 and (num_steps > n or len(written) == num_steps)
    if num_steps >= n: assert schedule == "cosine" or written == [1] * n


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_all_to_nothing(schedule):
    left = [masked_fraction(s / 50, schedule) for s in range(51)]
    assert left[0] == 1 and left[-1] == 0 and all(a > b for a, b in zip(left, left[1:]))


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=1, max_size=8), st.integers(0, 9))
def test_top_positions_are_the_best_candidates(row, count):
    score, among = torch.tensor([[s for s, _ in row]]), torch.tensor([[a for _, a in row]])
    taken = top_positions(score, among, torch.tensor([count]))
    assert taken.sum() == min(count, among.sum()) and not (taken & ~among).any()
    if taken.any() and (rest := among & ~taken).any(): assert score[taken].min() >= score[rest].max()


def test_scores_against_their_definitions():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    editable = torch.tensor([[True, False, True]])
    ids = torch.tensor([[MASK, 2, 1]])
    masked = ids == MASK
    drawn = torch.tensor([[1, 2, 3]])
    view = SamplerState(0, 1, ids, masked, editable, masked.sum(1), p.log(), drawn, torch.rand(1, 3, dtype=torch.float64), None)
    close = lambda a, b: torch.testing.assert_close(a, torch.tensor([b], dtype=torch.float64))
    close(view.score("max_prob"), [0.5, 0.0, 0.25])
    close(view.score("margin"), [0.2, 0.0, 0.0])
    close(view.score("entropy"), [0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2), 0.0, -math.log(4)])
    close(view.standing_prob, [0.3, 0.0, 0.25])
    assert view.score("left_to_right").argmax() == 0 and view.confidence is view.standing_prob


# Decisions

def state(confidence, masked, step=0, num_steps=4):
    "A row in which everything may change, with a head that says how sure it is."
    masked, head = torch.tensor([masked]).bool(), torch.tensor([confidence], dtype=torch.float64)
    ids = torch.arange(masked.shape[1])[None].masked_fill(masked, MASK)
    return SamplerState(step, num_steps, ids, masked, torch.ones_like(masked), masked.sum(1), torch.full((masked.shape[1], 8), -math.log(8), dtype=torch.float64), ids % 8, torch.zeros(masked.shape, dtype=torch.float64), head)


SURE = ([0.95, 0.05, 0.4, 0.6, 0.8], [1, 0, 1, 0, 1])  # two written, three masked

@pytest.mark.parametrize("policy, write, reopen", [
    (TopK(), [1, 0, 0, 0, 0], None),  # of three masks one a call, and of equals the first
    (ThresholdRemasking(0.7, 0.3), [1, 0, 0, 0, 1], [0, 1, 0, 0, 0]),
    (ThresholdRemasking(1.0, 0.5), [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]),  # nothing is above it: the best mask all the same
    (RefineGate(0.5), [1, 1, 1, 0, 1], None),
    (RefineGate(0.3), [1, 1, 1, 1, 1], None),
    (EntropyThreshold(1.0), [1, 1, 1, 0, 1], None),
    (EntropyThreshold(0.1), [1, 1, 1, 1, 1], None),
])
def test_each_policy_decides_as_it_says(policy, write, reopen):
    decision = policy(state(*SURE))
    assert decision.write.int().tolist() == [write] and (decision.reopen is None if reopen is None else decision.reopen.int().tolist() == [reopen])
    assert policy.reopens == (not isinstance(policy, TopK))


def test_the_last_call_of_remasking_writes_all_masks_and_reopens_none():
    decision = ThresholdRemasking()(state(*SURE, step=3))
    assert decision.write.int().tolist() == [SURE[1]] and decision.reopen is None


@pytest.mark.parametrize("build, words", [
    (lambda: RefineGate(1.5), "threshold is 1.5"), (lambda: RefineGate(stop_threshold=-0.1), "stop_threshold is -0.1"), (lambda: RefineGate(math.nan), "threshold is nan"),
    (lambda: EntropyThreshold(-1.0), "min_uncertainty is -1.0"), (lambda: EntropyThreshold(math.inf), "min_uncertainty is inf"), (lambda: EntropyThreshold(stop_threshold=2.0), "stop_threshold is 2.0"),
    (lambda: ThresholdRemasking(0.2, 0.3), "exceeds threshold 0.2"), (lambda: masked_fraction(0.5, "square"), "schedule 'square'"), (lambda: state(*SURE).score("best"), "order 'best'"),
])
def test_values_that_make_no_sense_are_refused(build, words):
    with pytest.raises(ValueError, match=words): build()


# Drawing

@given(st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda p: sum(p) > 0.1), st.floats(0.05, 5), st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-53]))
def test_draws_never_reach_an_impossible_token(p, temperature, u):
    log_probs = torch.tensor(p, dtype=torch.float64).log().log_softmax(-1)
    token = int(sample_categorical(log_probs[None], torch.tensor([u], dtype=torch.float64), temperature)[0])
    assert p[token] > 0
    assert p[int(sample_categorical(log_probs[None], torch.tensor([u], dtype=torch.float64), 0.0)[0])] == max(p)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    p = torch.tensor([0.6, 0.0, 0.3, 0.0999, 0.0001], dtype=torch.float64)
    grid = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    share = sample_categorical(p.log().expand(len(grid), -1), grid, temperature).bincount(minlength=5) / len(grid)
    torch.testing.assert_close(share.double(), p ** (1 / temperature) / (p ** (1 / temperature)).sum(), atol=2e-6, rtol=0)


def test_row_noise_is_uniform_and_skips_pads():
    real = torch.tensor([[True] * 6, [True, False, True, False, False, True]])
    noise, packed = RowNoise(3, real), RowNoise(4, torch.ones(1, 3, dtype=torch.bool))
    for _ in range(3):
        numbers = noise()
        assert torch.equal(numbers[1][real[1]], packed()[0]) and (numbers[1][~real[1]] == 0).all()
    many = torch.cat([RowNoise(seed, torch.ones(1, 1, dtype=torch.bool))() for seed in range(4000)])
    assert abs(many.mean() - 0.5) < 0.02 and abs(many.var() - 1 / 12) < 0.005, "consecutive seeds are as good as one stream"


@pytest.mark.parametrize("name, where", [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu"), ("mps:0", "cpu")])
def test_tokens_are_drawn_where_there_is_float64(name, where):
    assert sampling_device(torch.device(name)) == torch.device(where)
