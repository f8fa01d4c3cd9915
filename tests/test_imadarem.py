"""Imadarem: nothing leaks, everything learns, the gate is in the likelihood, and the two policies do what they say."""
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st
from torch.nn import functional as F

from shimmer.corruption import Batch, derive_noise, draw_noise, mask_tokens
from shimmer.evaluation import auroc, judged_fills
from shimmer.imadarem import ImplicitRefinementConfig, ImplicitRefinementModel, mix, sinusoidal_positions
from shimmer.likelihood import duel_nll, exact_nelbo, left_to_right_nll
from shimmer.models import Prediction, load_model
from shimmer.policies import EntropyThreshold, RefineGate, TopK
from shimmer.samplers import generate_by_refinement, refine
from shimmer.testing import check_no_leak, total_probability
from shimmer.tokenizers import CharTokenizer, WordTokenizer

V, L, PAD, EOS = 9, 8, 7, 8
OBJECTIVES = ("mixture", "replacement", "supervised")


def make(seed=0, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=L, dropout=0.0, pad_token_id=PAD, eos_token_id=EOS) | changes
    return ImplicitRefinementModel(ImplicitRefinementConfig(**settings))


def sharpen(model, seed=0):
    "Large random weights, so that whatever leaks moves the logits."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2: p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return model.eval()


def random_ids(rows, seed=0): return torch.randint(0, PAD, (rows, L), generator=torch.Generator().manual_seed(seed))


def batch_of(ids, seed=0): return Batch(ids, draw_noise(*ids.shape, torch.Generator().manual_seed(seed)))


def test_the_published_defaults():
    c = ImplicitRefinementConfig(vocab_size=100)
    assert (c.hidden_size, c.num_layers, c.num_heads, c.max_seq_len, c.max_refinement_steps, c.dropout, c.use_self_cond) == (128, 3, 4, 20, 6, 0.1, True)
    assert (c.stop_threshold, c.min_refine_uncertainty, c.ema_decay, c.diversity_weight, c.sampling_temperature, c.use_refine_gate) == (0.02, 0.1, 0.995, 0.05, 1.2, True)
    assert make().network.gate_head.bias.item() == 2.0


@pytest.mark.parametrize("changes, named", [(dict(pad_token_id=3, mask_token_id=3), "mask_token_id"), (dict(eos_token_id=9, mask_token_id=9), "eos_token_id"), (dict(eos_token_id=7), "pad_token_id"), (dict(eos_token_id=12), "0..8"), (dict(pad_token_id=9), "0..8"), (dict(mask_token_id=10), "0..9"),
                                            (dict(max_refinement_steps=0), "max_refinement_steps"), (dict(stop_threshold=1.0), "stop_threshold"), (dict(gate_objective="hope"), "gate_objective"), (dict(sampling_temperature=-1.0), "sampling_temperature")])
def test_what_cannot_be_built_is_refused(changes, named):
    with pytest.raises(ValueError, match=named): make(**changes)


@pytest.mark.parametrize("ids", [dict(mask_token_id=3, pad_token_id=3), dict(mask_token_id=3, pad_token_id=0, eos_token_id=3), dict(mask_token_id=3, pad_token_id=5, eos_token_id=5), dict(pad_token_id=0)])
def test_a_tokenizers_collisions_are_refused_at_construction(ids):
    with pytest.raises(ValueError, match="token"): ImplicitRefinementModel(ImplicitRefinementConfig(vocab_size=9), tokenizer=SimpleNamespace(**{"mask_token_id": None, **ids}))


def test_special_ids_come_from_the_tokenizer():
    words, letters = WordTokenizer.train(["a b c"]), CharTokenizer.train("abc", eos=False)
    config = ImplicitRefinementModel(ImplicitRefinementConfig(vocab_size=words.vocab_size, hidden_size=16, num_heads=2), tokenizer=words).config
    assert (config.mask_token_id, config.pad_token_id, config.eos_token_id) == (words.mask_token_id, words.pad_token_id, words.eos_token_id)
    assert ImplicitRefinementModel(ImplicitRefinementConfig(vocab_size=3, hidden_size=16, num_heads=2), tokenizer=letters).config.pad_token_id is None  # id 0 is a letter


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_parameter_learns(objective):
    model = make(gate_objective=objective)
    model.loss(batch_of(random_ids(64)))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_without_a_gate_everything_but_the_teacher_learns():
    model = make(use_refine_gate=False)
    model.loss(batch_of(random_ids(64)))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.network.parameters()) and all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("changes", [{}, dict(gate_objective="replacement"), dict(gate_objective="supervised"), dict(use_refine_gate=False), dict(token_noise=0.5, edited_share=0.9)])
@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0])
def test_no_target_leaks_into_training(changes, ratio):
    model, noise = sharpen(make(**changes)), draw_noise(16, L, torch.Generator().manual_seed(1))
    hidden = mask_tokens(noise, (ratio, ratio)).masked
    def predict(ids, _):
        corrupted = model.corrupt(Batch(ids, noise), (ratio, ratio))
        return torch.cat([*(part[..., None] if part.ndim == 2 else part for part in model.network(corrupted.canvas, corrupted.time, corrupted.guess) if part is not None), corrupted.guess], -1)
    check_no_leak(predict, random_ids(16), hidden, vocab_size=PAD)


def test_the_check_would_find_the_published_leak():
    class Leaking(ImplicitRefinementModel):
        @torch.no_grad()
        def first_guess(self, batch, canvas, unknown): return self.network(torch.where(batch.noise[:, 1:] < 0.5, batch.ids, canvas), 1 - unknown.ratio)[0]
    model, noise = sharpen(Leaking(make().config)), draw_noise(16, L, torch.Generator().manual_seed(1))
    hidden = mask_tokens(noise, (0.7, 0.7)).masked
    with pytest.raises(ValueError, match="leak"): check_no_leak(lambda ids, _: model.network(*[getattr(model.corrupt(Batch(ids, noise), (0.7, 0.7)), name) for name in ("canvas", "time", "guess")])[0], random_ids(16), hidden, vocab_size=PAD)


def test_edited_canvases_hold_wrong_tokens_and_whole_rows_without():
    ids = random_ids(256)
    canvas, unknown, time, guess = make(token_noise=0.3).corrupt(batch_of(ids), (0.5, 0.5))
    visible = ~unknown.masked
    edited = ((canvas != ids) & visible).any(1) | ((canvas != V) & unknown.masked).any(1)
    assert 0.3 < edited.double().mean() < 0.6
    assert (canvas[~edited][unknown.masked[~edited]] == V).all() and (canvas[~edited] == ids[~edited])[visible[~edited]].all()
    assert not (canvas == PAD).any() and torch.equal(time, 1 - unknown.ratio)
    assert 0.1 < (guess.sum((1, 2)) == 0).double().mean() < 0.4 and not (guess[edited].sum((1, 2)) == 0).any()
    assert torch.equal(make(edited_share=0.0).corrupt(batch_of(ids), (0.5, 0.5)).canvas, ids.masked_fill(unknown.masked, V))


def test_the_first_reading_is_a_function_of_ids_and_noise():
    model, batch = sharpen(make(dropout=0.5)).train(), batch_of(random_ids(8))
    first, second = model.corrupt(batch, (0.5, 0.5)), model.corrupt(batch, (0.5, 0.5))
    assert torch.equal(first.canvas, second.canvas) and torch.equal(first.guess, second.guess) and model.network.training


def test_the_masked_part_of_a_loss_is_the_mean_of_its_parts():
    model, batch = make(diversity_weight=0.0).eval(), batch_of(random_ids(8))
    whole, parts = model.loss(batch), [model.loss(Batch(batch.ids[i : i + 4], batch.noise[i : i + 4])) for i in (0, 4)]
    assert whole["token_loss"].item() == pytest.approx(sum(part["token_loss"].item() for part in parts) / 2, rel=1e-5)


def test_ids_alone_get_noise_from_a_seed():
    model, ids = make(), random_ids(8)
    assert model.loss(ids, seed=1)["loss"] == model.loss(ids, seed=1)["loss"] != model.loss(ids, seed=2)["loss"]


@given(st.integers(0, 10_000), st.sampled_from(OBJECTIVES[:2]))
def test_a_mixture_is_a_distribution(seed, objective):
    g = torch.Generator().manual_seed(seed)
    config = ImplicitRefinementConfig(vocab_size=5, gate_objective=objective)
    logits, gate, ids = 3 * torch.randn(7, 5, generator=g), 3 * torch.randn(7, generator=g), torch.randint(0, 6, (7,), generator=g)
    m, visible = mix(logits, gate, ids, config).exp(), ids != 5
    total = m.sum(-1)
    assert torch.allclose(total[visible], torch.ones(int(visible.sum())), atol=1e-5)
    assert torch.allclose(total[~visible], (gate.sigmoid() if objective == "mixture" else torch.ones(7))[~visible], atol=1e-5)
    others = (logits.softmax(-1) * (1 - F.one_hot(ids.clamp(max=4), 5)) * gate.sigmoid()[:, None]).sum(-1)
    standing = m.gather(-1, ids.clamp(max=4)[:, None])[:, 0]
    if objective == "mixture": assert torch.allclose(standing[visible], 1 - others[visible], atol=1e-5)
    else: assert torch.allclose(standing[visible], 1 - gate.sigmoid()[visible], atol=1e-5)


def test_the_replacements_likelihood_is_the_supervised_loss():
    g = torch.Generator().manual_seed(0)
    config = ImplicitRefinementConfig(vocab_size=5, gate_objective="replacement")
    logits, gate, ids, target = torch.randn(50, 5, generator=g), torch.randn(50, generator=g), torch.randint(0, 5, (50,), generator=g), torch.randint(0, 5, (50,), generator=g)
    wrong = ids != target
    without = logits.masked_fill(F.one_hot(ids, 5).bool(), -math.inf)
    by_parts = F.binary_cross_entropy_with_logits(gate, wrong.float(), reduction="none")
    by_parts[wrong] += F.cross_entropy(without[wrong], target[wrong], reduction="none")
    assert torch.allclose(-mix(logits, gate, ids, config).gather(-1, target[:, None])[:, 0], by_parts, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_denoise_says(objective):
    model = make(gate_objective=objective).eval()
    canvas = random_ids(4).masked_fill(torch.rand(4, L, generator=torch.Generator().manual_seed(3)) < 0.5, V)
    logits, confidence, (guess, time) = model.denoise(canvas)
    visible = canvas != V
    assert logits.shape == (4, L, V) and (logits[..., PAD] == -math.inf).all() and 0 <= confidence.min() <= confidence.max() <= 1
    assert (confidence[~visible] == 0).all() and torch.allclose(logits.exp().sum(-1), torch.ones(4, L))
    if objective != "supervised":
        assert torch.allclose(confidence[visible], logits.softmax(-1).gather(-1, canvas.clamp(max=V - 1)[..., None])[..., 0][visible], atol=1e-5)
    assert torch.allclose(time, visible.float().mean(1)) and torch.allclose(guess.sum(-1), torch.ones(4, L))


def test_time_moves_by_one_over_k_where_all_is_filled_and_by_the_known_share_where_not():
    model = make(max_refinement_steps=4).eval()
    empty, full = torch.full((1, L), V), random_ids(1)
    _, _, state = model.denoise(empty)
    assert state[1] == 0
    for n in (1, 2, 3, 4, 5):
        _, _, state = model.denoise(full, state)
        assert state[1].item() == pytest.approx(min(1, n / 4))
    half = full.clone()
    half[0, : L // 4] = V
    assert model.denoise(half, state)[2][1].item() == pytest.approx(0.75)


def test_the_teacher_follows_the_stated_ramp():
    model = make(use_refine_gate=False, ema_decay=0.9)
    with torch.no_grad(): model.network.lm_head.weight.fill_(0.0)
    model.init_teacher()
    held = 0.0
    for step in range(1, 200):
        with torch.no_grad(): model.network.lm_head.weight.fill_(float(step))
        model.after_update(step)
        decay = min(0.9, step / (step + 10))
        held = decay * held + (1 - decay) * step
        assert model.teacher.lm_head.weight[0, 0].item() == pytest.approx(held, rel=1e-4)
    gated = make()
    gated.init_teacher()
    assert gated.teacher is None and gated.after_update(1) is None


def test_a_teacher_gives_the_entropy_and_the_student_the_tokens():
    model, ids = make(use_refine_gate=False).eval(), random_ids(2)
    with torch.no_grad(): model.teacher.lm_head.weight.zero_()
    logits, confidence, _ = model.denoise(ids)
    assert torch.allclose(confidence, torch.full((2, L), 1 / (V - 1)), atol=1e-6)  # e^−ln 8: all tokens but the pad alike
    assert not torch.allclose(logits[..., 0], logits[..., 1])


@pytest.mark.parametrize("changes", [{}, dict(use_refine_gate=False), dict(gate_objective="supervised", use_self_cond=False)])
def test_saved_and_loaded_it_is_the_same(tmp_path, changes):
    model, canvas = make(**changes).eval(), torch.full((2, L), V)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is ImplicitRefinementModel and again.config == model.config
    for a, b in zip(model.denoise(canvas)[:2], again.denoise(canvas)[:2]): assert torch.equal(a, b)


def test_its_likelihoods_are_likelihoods():
    torch.manual_seed(0)
    model = ImplicitRefinementModel(ImplicitRefinementConfig(vocab_size=3, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=4)).eval()
    assert total_probability(lambda ids: left_to_right_nll(model, ids), 3, 4) == pytest.approx(1, abs=1e-4)
    assert total_probability(lambda ids: duel_nll(model, ids, k=2), 3, 4) == pytest.approx(1, abs=1e-4)  # self-conditioning included
    assert total_probability(lambda ids: exact_nelbo(model, ids), 3, 4) < 1.0001


class Fixed:
    "A denoiser that always says the same of each position."
    def __init__(self, tokens, confidence):
        self.config, self.training = SimpleNamespace(vocab_size=V, mask_token_id=V, pad_token_id=None, max_seq_len=len(tokens)), False
        self.logits, self.confidence, self.calls = 50.0 * F.one_hot(torch.tensor(tokens), V).float(), torch.tensor(confidence), 0
    def parameters(self): return iter(())
    def eval(self): return self
    def train(self, mode=True): return self
    def denoise(self, ids, state=None, at=None):
        self.calls += 1
        return Prediction(self.logits.expand(len(ids), -1, -1), self.confidence.expand(len(ids), -1), None).at(at)


def test_a_closed_gate_changes_nothing_and_an_open_one_writes():
    model, start = Fixed([1] * 6, [0.9, 0.9, 0.4, 0.4, 0.9, 0.4]), torch.tensor([[2] * 6])
    free = torch.zeros(1, 6, dtype=torch.bool)
    assert torch.equal(refine(model, start, RefineGate(0.7), 5, fixed=free).ids, start)
    run = refine(model, start, RefineGate(0.5), 5, fixed=free)
    assert run.ids.tolist() == [[2, 2, 1, 1, 2, 1]] and run.chosen[0].tolist() == [[False, False, True, True, False, True]]
    assert run.chosen[1].tolist() == run.chosen[0].tolist() and not run.written[1].any() and run.stop_reason == ["nothing changes"] and run.num_calls.tolist() == [2]


def test_masks_are_written_whatever_the_gate_says():
    run = refine(Fixed([1] * 4, [1.0] * 4), torch.full((1, 4), V), RefineGate(), 5)
    assert run.ids.tolist() == [[1] * 4]


def test_the_entropy_threshold_is_in_nats():
    model, start = Fixed([1] * 3, [math.exp(-0.05), math.exp(-0.15), math.exp(-2.0)]), torch.tensor([[2] * 3])
    free = torch.zeros(1, 3, dtype=torch.bool)
    assert refine(model, start, EntropyThreshold(0.1), 3, fixed=free).ids.tolist() == [[2, 1, 1]]
    assert refine(model, start, EntropyThreshold(1.0), 3, fixed=free).ids.tolist() == [[2, 2, 1]]


class Settling(Fixed):
    "Its n-th call writes token 2 at the first n positions and token 1 at the rest, so that each later call changes one position."
    def denoise(self, ids, state=None, at=None):
        self.calls += 1
        tokens = torch.tensor([2 if i < self.calls else 1 for i in range(self.config.max_seq_len)])
        return Prediction((50.0 * F.one_hot(tokens, V).float()).expand(len(ids), -1, -1), torch.zeros(len(ids), self.config.max_seq_len), None).at(at)


@pytest.mark.parametrize("stop, calls, reason", [(0.0, 9, "calls used up"), (0.1, 9, "calls used up"), (0.101, 2, "little changes"), (0.5, 2, "little changes")])
def test_it_stops_below_the_stated_ratio(stop, calls, reason):
    run = refine(Settling([1] * 10, [0.0] * 10), torch.full((1, 10), V), RefineGate(stop_threshold=stop), 9)
    assert run.num_calls.tolist() == [calls] and run.stop_reason == [reason]


class Ending(Fixed):
    "Writes an end at position 3 in its first call, and other tokens everywhere in later ones."
    def denoise(self, ids, state=None, at=None):
        self.calls += 1
        tokens = torch.tensor([1, 1, 1, EOS, 2, 2] if self.calls == 1 else [self.calls % 7] * 6)
        return Prediction((50.0 * F.one_hot(tokens, V).float()).expand(len(ids), -1, -1), torch.zeros(len(ids), 6), None).at(at)


def test_behind_a_written_end_all_is_final():
    run = refine(Ending([1] * 6, [0.0] * 6), torch.full((1, 6), V), RefineGate(stop_threshold=0.0), 4, eos_token_id=EOS)
    assert (run.canvases[1:, 0, 3:] == EOS).all() and run.ids[0, :3].tolist() == [4, 4, 4]
    assert not run.chosen[1:, 0, 3:].any()
    free = refine(Ending([1] * 6, [0.0] * 6), torch.full((1, 6), V), RefineGate(stop_threshold=0.0, freezes_end=False), 4, eos_token_id=EOS)
    assert free.ids[0].tolist() == [4] * 6


def test_an_end_that_was_there_is_not_one_that_was_written():
    start = torch.tensor([[2, EOS, 5, 1]])
    run = refine(Fixed([2, EOS, 5, 1], [1.0] * 4), start, RefineGate(), 3, fixed=torch.zeros(1, 4, dtype=torch.bool), eos_token_id=EOS)
    assert torch.equal(run.ids, start)


def test_a_given_end_freezes_nothing_and_given_tokens_stay():
    canvas = torch.tensor([[V, EOS, V, 5, V, V]])
    run = refine(Ending([1] * 6, [0.0] * 6), canvas, RefineGate(stop_threshold=0.0), 3, eos_token_id=EOS)
    assert run.ids[0, [1, 3]].tolist() == [EOS, 5] and run.ids[0, 0] == 3


@pytest.mark.parametrize("changes", [{}, dict(use_refine_gate=False)])
def test_generation_keeps_prompts_and_fills_everything(changes):
    model = make(**changes)
    run = generate_by_refinement(model, [[1, 2], [3]], gen_length=5, seed=3)
    assert run.ids[0, :2].tolist() == [1, 2] and run.ids[1, 0] == 3 and not (run.ids == V).any()
    assert run.num_calls.max() <= model.config.max_refinement_steps
    alone = generate_by_refinement(model, [[3]], gen_length=5, seed=4)
    assert torch.equal(alone.ids[0], run.ids[1, :6])


@pytest.mark.parametrize("make_policy", [lambda: RefineGate(1.5), lambda: RefineGate(0.5, -0.1), lambda: EntropyThreshold(-1.0), lambda: EntropyThreshold(0.1, 2.0)])
def test_senseless_policies_are_refused(make_policy):
    with pytest.raises(ValueError, match="threshold|uncertainty"): make_policy()


def test_the_policy_is_the_configs():
    assert make(stop_threshold=0.3).default_policy() == RefineGate(stop_threshold=0.3)
    assert make(use_refine_gate=False, min_refine_uncertainty=0.4).default_policy() == EntropyThreshold(0.4, 0.02)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20))
def test_auroc_by_counting_pairs(pairs):
    score, answer = torch.tensor([float(s) for s, _ in pairs]), torch.tensor([a for _, a in pairs])
    yes, no = score[answer], score[~answer]
    if not len(yes) or not len(no): assert math.isnan(auroc(score, answer))
    else: assert auroc(score, answer) == pytest.approx(((yes[:, None] > no).double() + (yes[:, None] == no).double() / 2).mean().item())


class Knowing(Fixed):
    "Writes one text, and holds a confidence of 0.9 in its own tokens and 0.1 in others."
    def real_tokens(self, ids): return torch.ones_like(ids, dtype=torch.bool)
    def denoise(self, ids, state=None, at=None): return super().denoise(ids)._replace(confidence=torch.where(ids == self.logits.argmax(-1), 0.9, 0.1)).at(at)


def test_fills_are_judged_where_they_were_filled():
    texts = torch.tensor([[1, 2, 3, 4, 5, 6]]).repeat(50, 1)
    texts[:, 2] = 0  # the model will write 3 here
    doubt, wrong = judged_fills(Knowing([1, 2, 3, 4, 5, 6], [0.5] * 6), texts, ratio=0.5)
    assert len(doubt) == len(wrong) == 150 and torch.allclose(doubt, torch.full((150,), 0.1))  # it believes in what it wrote
    assert 5 < wrong.sum() < 50  # and is wrong where position 2 was hidden
    model = make(dropout=0.5).train()
    assert torch.equal(judged_fills(model, random_ids(10))[0], judged_fills(model, random_ids(10))[0]) and model.training


def test_derived_noise_is_uniform_independent_and_a_function_of_each_row():
    noise = draw_noise(512, 32, torch.Generator().manual_seed(0))
    derived = torch.stack([noise, *(derive_noise(noise, n) for n in range(1, 6))]).flatten(1)
    assert 0 <= derived.min() and derived.max() < 1
    assert (torch.corrcoef(derived) - torch.eye(6)).abs().max() < 0.04
    for row in derived: assert (torch.histc(row, 16, 0, 1) - row.numel() / 16).abs().max() < 6 * math.sqrt(row.numel() / 16)
    assert torch.equal(derive_noise(noise[100:110], 2), derive_noise(noise, 2)[100:110])


def test_auroc_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one of each"): auroc(torch.ones(3), torch.ones(2, dtype=torch.bool))


def test_waves_are_sines_then_cosines():
    w = sinusoidal_positions(5, 6)
    assert torch.allclose(w[3, 0], torch.tensor(3.0).sin()) and torch.allclose(w[3, 3], torch.tensor(3.0).cos())
    with pytest.raises(ValueError, match="even"): sinusoidal_positions(5, 5)


def test_other_samplers_take_it_as_it_is():
    model = make().eval()
    run = refine(model, torch.full((3, L), V), TopK(order="random"), L, eos_token_id=EOS)
    assert not (run.ids == V).any() and run.confidence.shape[0] == len(run.canvases) - 1
