"""GPT: its size, that its factors are a distribution, that a cache changes nothing however it is used, that rows keep to themselves, and what it draws from."""
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from shimmer.appending import append_tokens, check_prompts, generate_left_to_right, top_k_top_p_filter
from shimmer.canvases import encode_corpus
from shimmer.corruption import Batch
from shimmer.devices import compiled
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.layers import KVCache, rotary_angles
from shimmer.models import load_model
from shimmer.objectives import NextToken
from shimmer.schedules import Stage, TrainConfig
from shimmer.tokenizers import WordTokenizer
from shimmer.training import fit

V, BOS, PAD, EOS = 9, 7, 8, 7  # ids 0..6 are words
LENGTH = 12


def make(seed=0, **options):
    "A float64 model in evaluation mode whose weights are large enough to make every difference visible."
    torch.manual_seed(seed)
    shape = dict(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, max_seq_len=LENGTH, bos_token_id=BOS, pad_token_id=PAD)
    model = GPTModel(GPTConfig(**shape | options)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2: p.mul_(12)
    return model


def texts(seed=0, rows=4, length=LENGTH): return torch.randint(7, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(read, ids, sizes, real=None):
    "Logits of a text that is read piece by piece through one cache."
    cache, out = KVCache(), []
    for piece in ids.split(sizes, 1):
        seen = cache.length + piece.shape[1]
        out.append(read(piece, cache, None if real is None else real[:, :seen]))
    return torch.cat(out, 1)


def close(a, b): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def sizes_of(cuts, length):
    edges = [0, *sorted({c % length for c in cuts} - {0}), length]
    return [b - a for a, b in itertools.pairwise(edges)]


cuts = st.lists(st.integers(1, LENGTH - 1), max_size=6)
shapes = st.sampled_from([dict(), dict(qk_norm=True), dict(num_layers=1, num_heads=1), dict(num_layers=3, hidden_size=24, num_heads=3), dict(num_heads=4, qk_norm=True)])


# size and meaning

def test_golden_parameter_count():
    with torch.device("meta"): model = GPTModel(GPTConfig(vocab_size=9_995, hidden_size=320, num_layers=6, num_heads=5))
    assert sum(p.numel() for p in model.parameters()) == 10_821_120


@pytest.mark.parametrize("bos", range(4))
def test_probabilities_of_all_texts_sum_to_one(bos):
    model = make(vocab_size=4, bos_token_id=bos, pad_token_id=None, max_seq_len=4)
    everything = torch.tensor(list(itertools.product(range(4), repeat=4)))
    nats = F.cross_entropy(model.next_token_logits(everything).transpose(1, 2), everything, reduction="none").sum(1)
    assert math.isclose((-nats).exp().sum().item(), 1, rel_tol=1e-9)
    assert nats.std() > 0.1


@given(st.integers(0, 1000), shapes, st.integers(0, LENGTH - 1))
@settings(max_examples=20)
def test_later_tokens_never_move_earlier_logits(seed, shape, i):
    model, ids = make(seed, **shape), texts(seed)
    changed = ids.clone()
    changed[:, i:] = (changed[:, i:] + 1 + texts(seed + 1)[:, i:] % 5) % 7
    moved = (model.next_token_logits(changed) - model.next_token_logits(ids)).abs().amax((0, 2))
    assert (moved[: i + 1] < 1e-10).all() and (moved[i + 1 :] > 1e-6).all()


@given(st.integers(0, 1000), shapes)
@settings(max_examples=10)
def test_next_token_logits_are_forward_behind_the_token_before_the_first(seed, shape):
    model, ids = make(seed, **shape), texts(seed)
    close(model.next_token_logits(ids), model(F.pad(ids[:, :-1], (1, 0), value=BOS)).logits)


@given(st.integers(0, 1000), st.lists(st.integers(1, LENGTH), min_size=1, max_size=5))
@settings(max_examples=20)
def test_loss_is_the_mean_of_minus_log_softmax_over_real_tokens(seed, lengths):
    model, ids = make(seed), texts(seed, rows=len(lengths))
    alone = [-model.next_token_logits(row[None, :n]).log_softmax(-1)[0, range(n), row[:n]] for row, n in zip(ids, lengths)]
    padded = ids.where(torch.arange(LENGTH) < torch.tensor(lengths)[:, None], PAD)
    close(NextToken()(model, Batch(padded, None))["loss"], torch.cat(alone).mean())


def test_every_weight_learns():
    model = make(qk_norm=True, num_layers=2)
    NextToken()(model, Batch(texts(), None))["loss"].backward()
    assert all((p.grad != 0).any() for p in model.parameters())


def test_dropout_only_in_training():
    model, ids = make(dropout=0.5), texts()
    assert torch.equal(model(ids).logits, model(ids).logits)
    close(model(ids).logits, make().eval()(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    model.generate([[1]], 3)
    assert model.training


# the cache

@given(st.integers(0, 1000), shapes, cuts, st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=4))
@settings(max_examples=30)
def test_cached_equals_uncached_in_any_pieces_behind_any_pads(seed, shape, cuts, pads):
    model, ids = make(seed, **shape), texts(seed, rows=len(pads))
    real = torch.arange(LENGTH) >= torch.tensor(pads)[:, None]
    held = in_pieces(lambda *read: model(*read).logits, ids.where(real, PAD), sizes_of(cuts, LENGTH), real)
    whole = model(ids.where(real, PAD)).logits
    for i, n in enumerate(pads):
        alone = model(ids[i : i + 1, n:]).logits[0]
        close(held[i, n:], alone)
        close(whole[i, n:], alone)


def read_wrongly(model, right_position=False, right_mask=False):
    "The cached branch with its two faults: the new token stands at position 0, and sees the first token alone."
    def read(ids, cache, real=None):
        held, L = cache.length, ids.shape[1]
        rotary = rotary_angles(L, model.stack.layers[0].attention.head_dim, offset=held if right_position else 0)
        mask = None if right_mask or not held else (torch.arange(held + L) == 0).expand(len(ids), -1)
        return model.read_tokens(model.stack(model.embed_tokens(ids), rotary, mask, cache))
    return read


@pytest.mark.parametrize("right_position, right_mask", [(False, False), (True, False), (False, True), (True, True)])
def test_the_check_catches_either_fault(right_position, right_mask):
    model, ids = make(), texts()
    difference = (in_pieces(read_wrongly(model, right_position, right_mask), ids, 1) - model(ids).logits).abs().amax((0, 2))
    assert difference[0] < 1e-9
    assert (difference[1:] < 1e-9).all() if right_position and right_mask else difference[2:].min() > 1e-3


def test_behind_the_wrong_mask_the_position_does_not_matter_and_the_last_token_decides():
    model, ids = make(), texts()
    wrong = in_pieces(read_wrongly(model), ids, 1)
    close(in_pieces(read_wrongly(model, right_position=True), ids, 1), wrong)
    other = ids.clone()
    other[:, 1:-1] = (ids[:, 1:-1] + 1) % 7
    close(in_pieces(read_wrongly(model), other, 1)[:, -1], wrong[:, -1])
    assert (model(other).logits[:, -1] - model(ids).logits[:, -1]).abs().max() > 1e-3


# writing

@given(st.integers(0, 1000), st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=4), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, EOS]), st.sampled_from([{}, dict(top_k=3), dict(top_p=0.7)]))
@settings(max_examples=15)
def test_a_row_depends_on_its_prompt_and_seed_alone(seed, prompts, temperature, eos, cut):
    model, longest = make(seed), max(map(len, prompts))
    ids, probs = append_tokens(model, prompts, 5, temperature, seed=seed, eos_token_id=eos, **cut)
    slow, slow_probs = append_tokens(model, prompts, 5, temperature, seed=seed, eos_token_id=eos, use_cache=False, **cut)
    assert ids.shape == (len(prompts), longest + 5) and torch.equal(ids, slow)
    close(probs, slow_probs)
    for i, prompt in enumerate(prompts):
        alone, alone_probs = append_tokens(model, [prompt], 5, temperature, seed=seed + i, eos_token_id=eos, **cut)
        assert ids[i].tolist() == [PAD] * (longest - len(prompt)) + alone[0].tolist() and alone[0, : len(prompt)].tolist() == prompt
        close(probs[i], alone_probs[0])
    assert not (ids[:, longest:] == PAD).any()
    padded = torch.tensor([[PAD] * (longest - len(p)) + p for p in prompts], dtype=torch.int64)
    assert torch.equal(model.generate(padded, 5, temperature=temperature, seed=seed, eos_token_id=eos, **cut), ids)


def test_greedy_is_the_loop_of_argmax_and_ignores_the_seed():
    model, ids = make(pad_token_id=None), torch.full((1, 1), BOS)
    for _ in range(LENGTH): ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    for seed in (0, 5): assert torch.equal(model.generate([[]], temperature=0, seed=seed), ids[:, 1:])


def test_draws_follow_the_model():
    model = make()
    drawn = model.generate([[3, 1]] * 4000, 1, temperature=0.7)[:, -1]
    logits = model(torch.tensor([[BOS, 3, 1]])).logits[0, -1]
    logits[PAD] = -math.inf
    torch.testing.assert_close(drawn.bincount(minlength=V) / 4000, (logits / 0.7).softmax(-1).float().detach(), rtol=0, atol=0.03)


def test_probabilities_are_the_models_own_before_any_cut():
    model = make()
    ids, probs = append_tokens(model, [[2, 5]], 6, temperature=0.3, top_k=2)
    logits = model(F.pad(ids, (1, 0), value=BOS)).logits[0, 2:-1]
    logits[:, PAD] = -math.inf
    close(probs[0], logits.softmax(-1)[range(6), ids[0, 2:]].detach())


@pytest.mark.parametrize("use_cache", [True, False])
def test_behind_an_end_there_is_nothing_else(use_cache):
    model = make()
    free = model.generate([[]] * 40, temperature=1.0, use_cache=use_cache)
    ids, probs = append_tokens(model, [[]] * 40, temperature=1.0, eos_token_id=EOS, use_cache=use_cache)
    ended = (ids == EOS).cumsum(1) > 0
    assert ended.any() and (ids[ended] == EOS).all() and torch.equal(ids[~ended], free[~ended])
    behind = (ids == EOS).cumsum(1) > 1
    assert (probs[behind] == 1).all() and (probs[~behind] < 1).all()


def test_rows_that_all_end_early_are_filled_up():
    model = make(pad_token_id=None)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    first = int(model.generate([[1]], 1, temperature=0)[0, -1])
    calls.clear()
    ids, probs = append_tokens(model, [[1]] * 2, 6, temperature=0, eos_token_id=first)
    assert ids.tolist() == [[1] + [first] * 6] * 2 and probs.shape == (2, 6) and len(calls) == 1


def test_the_whole_context_can_be_filled_and_not_more():
    model = make()
    assert model.generate([[]]).shape == model.generate([[1] * (LENGTH - 1)]).shape == (1, LENGTH)
    model(torch.zeros(1, LENGTH, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"{LENGTH + 1} tokens are read, max_seq_len is {LENGTH}"): model(torch.zeros(1, LENGTH + 1, dtype=torch.int64))


# what is drawn from

@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.one_of(st.none(), st.integers(1, 10)), st.one_of(st.none(), st.floats(0.01, 1.0)))
def test_truncate_is_its_definition(weights, top_k, top_p):
    p = torch.tensor(weights, dtype=torch.float64)
    cut = top_k_top_p_filter(p.log(), top_k, top_p)
    ranked = sorted(range(len(p)), key=lambda i: (-weights[i], i))[:top_k]
    total, before, kept = sum(weights[i] for i in ranked), 0, []
    for i in ranked:
        if top_p is None or before / total < top_p - 1e-9: kept.append(i)
        elif abs(before / total - top_p) <= 1e-9: return  # at the line rounding decides
        before += weights[i]
    assert {i for i in range(len(p)) if cut[i] > -math.inf} == {i for i in kept if weights[i]}
    assert cut[ranked[0]] == p.log()[ranked[0]]


def test_where_nothing_is_cut_nothing_is_sorted():
    log_probs = torch.randn(3, 6, dtype=torch.float64)
    for cut in ({}, {"top_p": 1.0}): assert top_k_top_p_filter(log_probs, **cut) is log_probs


def test_truncate_does_rows_by_themselves_and_leaves_its_input_alone():
    log_probs = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    before = log_probs.clone()
    cut = top_k_top_p_filter(log_probs, top_k=4, top_p=0.8)
    assert torch.equal(log_probs, before)
    for i, j in itertools.product(range(3), range(4)): assert torch.equal(cut[i, j], top_k_top_p_filter(log_probs[i, j], top_k=4, top_p=0.8))


def test_cuts_reach_the_draws():
    model = make()
    logits = model(torch.tensor([[BOS, 3]])).logits[0, -1].detach()
    logits[PAD] = -math.inf
    for cut in (dict(top_k=2), dict(top_p=0.6)):
        allowed = (top_k_top_p_filter(logits, **cut) > -math.inf).nonzero().flatten().tolist()
        drawn = Counter(model.generate([[3]] * 300, 1, temperature=1.0, **cut)[:, -1].tolist())
        assert set(drawn) <= set(allowed) and len(allowed) < V - 1


# the record

@given(st.integers(0, 1000), st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=3), st.sampled_from([None, EOS]))
@settings(max_examples=15)
def test_the_trajectory_of_an_appending_model(seed, prompts, eos):
    model, start, new = make(seed), max(map(len, prompts)), 6
    run = generate_left_to_right(model, prompts, new, 1.0, seed, eos_token_id=eos, mask_token_id=V)
    ids, probs = append_tokens(model, prompts, new, 1.0, seed=seed, eos_token_id=eos)
    assert torch.equal(run.ids, ids) and torch.equal(run.canvases[-1], ids)
    assert torch.equal(run.fixed, (torch.arange(start + new) < start).expand(ids.shape))
    assert (run.canvases[0, :, start:] == V).all() and torch.equal(run.canvases[0, :, :start], ids[:, :start])
    assert run.canvases.shape[0] == run.confidence.shape[0] + 1 == run.num_calls.max() + 1 and not run.reopened.any()
    for row, calls in enumerate(run.num_calls.tolist()):
        tokens = ids[row, start:].tolist()
        assert calls == (tokens.index(eos) + 1 if eos in tokens else new)
        for call in range(len(run.confidence)):
            here = run.written[call, row].nonzero().flatten().tolist()
            assert here == ([] if call >= calls else [*range(start + call, start + new)] if call + 1 == calls else [start + call])
            held = run.confidence[call, row]
            expected = [1.0] * start + [float(q) if call >= n else math.nan for n, q in enumerate(probs[row])] if call + 1 < calls else [1.0] * start + probs[row].tolist()
            torch.testing.assert_close(held, torch.ones_like(held) if call >= calls else torch.tensor(expected, dtype=torch.float32), equal_nan=True)


def test_masks_default_to_one_past_the_vocabulary():
    run = generate_left_to_right(make(), [[1]], 3)
    assert run.mask_token_id == V and (run.canvases[0, 0, 1:] == V).all() and run.stop_reason == ["canvas full"]


# kept, trained, compiled

def test_save_and_load(tmp_path):
    model = make(qk_norm=True).float()
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is GPTModel and loaded.config == model.config and not loaded.training
    assert torch.equal(loaded.next_token_logits(texts()), model.next_token_logits(texts()))


def test_a_few_updates_lower_the_loss(tmp_path):
    lines = ["the cat sat on the mat", "a dog sat on a mat", "the dog ran", "a cat ran home"] * 16
    tokenizer = WordTokenizer.train(lines)
    rows = SimpleNamespace(name="lines", train=_dataset(lines), valid=_dataset(lines[:4]), documents=True)
    corpus = encode_corpus(rows, tokenizer, 8, cache_dir=tmp_path)
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(tokenizer.vocab_size, 16, 1, 2, 8, bos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    batch = Batch(corpus.valid[:]["ids"], None)
    before = NextToken()(model, batch)["loss"].item()
    result = fit(model, corpus, (Stage("only", epochs=5, data_fraction=1.0),), TrainConfig(batch_size=16, lr=1e-2, warmup_steps=1, progress=False))
    assert result.steps == 20 and NextToken()(model, batch)["loss"].item() < 0.6 * before


def _dataset(lines):
    from datasets import Dataset
    return Dataset.from_dict({"text": lines})


def test_the_compiled_parts_are_there_and_give_the_same_loss(monkeypatch):
    model, ids = make(), texts()
    plain = NextToken()(model, Batch(ids, None))["loss"]
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")))
    with compiled(model, model.compiled_parts):
        assert model.stack._compiled_call_impl is not None
        loss = NextToken()(model, Batch(ids, None))["loss"]
        close(loss, plain)
        loss.backward()
    assert model.stack._compiled_call_impl is None and all(p.grad is not None for p in model.parameters())


# refusals

@pytest.mark.parametrize("options, message", [
    (dict(vocab_size=0), "vocab_size is 0: give at least 1"), (dict(hidden_size=0), "hidden_size is 0"), (dict(num_layers=0), "num_layers is 0"), (dict(max_seq_len=0), "max_seq_len is 0"),
    (dict(dropout=1.0), r"dropout is 1.0: give a share in \[0, 1\)"), (dict(bos_token_id=9), "bos_token_id is 9 and vocab_size is 9: give an id from 0 to 8"), (dict(pad_token_id=9), "pad_token_id is 9"),
    (dict(bos_token_id=-1), "bos_token_id is -1"), (dict(bos_token_id=8), "are both 8: a pad is never read")])
def test_shapes_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message): GPTConfig(**dict(vocab_size=V, bos_token_id=BOS, pad_token_id=PAD) | options)


@pytest.mark.parametrize("arguments, message", [
    (dict(prompt_ids=[1, 2]), "single row"), (dict(prompt_ids=[]), "prompt_ids is empty"), (dict(prompt_ids=[[1, PAD, 2]]), r"holds a pad \(8\) behind a token"),
    (dict(prompt_ids=[[1, 99]]), "holds token 99, the model knows 0 to 8"), (dict(prompt_ids=[[-1]]), "holds token -1"), (dict(prompt_ids=[[1] * LENGTH]), f"has {LENGTH} tokens, max_seq_len is {LENGTH}"),
    (dict(max_new_tokens=0), "0 new tokens are asked for: behind a prompt of 2 tokens there is room for 1 to 10"), (dict(max_new_tokens=11), "room for 1 to 10"),
    (dict(temperature=-0.1), "temperature is -0.1"), (dict(temperature=math.inf), "temperature is inf"), (dict(temperature=math.nan), "temperature is nan"),
    (dict(top_k=0), "top_k is 0"), (dict(top_p=0), "top_p is 0"), (dict(top_p=1.5), "top_p is 1.5")])
def test_requests_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message): make().generate(**dict(prompt_ids=[[1, 2]]) | arguments)


def test_prompts_of_different_lengths_need_a_pad():
    with pytest.raises(ValueError, match="prompts of 1 to 2 tokens need a pad token"): make(pad_token_id=None).generate([[1], [1, 2]])
    assert check_prompts(make(), torch.tensor([[PAD, 1], [1, 2]])) == ([[1], [1, 2]], LENGTH - 2)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_cache_remembers_which_tokens_were_pads(parts):
    model = make()
    ids = torch.tensor([[PAD, PAD, 1, 2, 3, 4], [5, 6, 1, 2, 3, 4]])
    cache, told, out, shown = KVCache(), KVCache(), [], []
    for n, part in enumerate(ids.tensor_split(parts, 1)):
        out.append(model(part, cache).logits)
        seen = sum(p.shape[1] for p in ids.tensor_split(parts, 1)[: n + 1])
        shown.append(model(part, told, ids[:, :seen] != PAD).logits)
    real = ids != PAD
    torch.testing.assert_close(torch.cat(out, 1)[real], torch.cat(shown, 1)[real])
    torch.testing.assert_close(torch.cat(out, 1)[0, 2:], model(ids[:1, 2:]).logits[0])
    assert cache.real is not None and cache.real.equal(real)


def test_pads_in_the_wrong_place_are_refused():
    model, padded = make(), torch.tensor([[PAD, 1, 2]])
    with pytest.raises(ValueError, match=r"a pad \(8\) stands in front of a token"): model.next_token_logits(padded)
    with pytest.raises(ValueError, match="stands in front of a token"): NextToken()(model, Batch(padded, None))
    cache = KVCache()
    model(padded, cache, padded != PAD)
    with pytest.raises(ValueError, match="4 keys"): model(torch.tensor([[1]]), cache, torch.tensor([[True]]))
    with pytest.raises(ValueError, match=f"{LENGTH + 1} tokens are read"): model.next_token_logits(torch.zeros(1, LENGTH + 1, dtype=torch.int64))
