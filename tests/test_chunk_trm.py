"""Chunk models: nothing of a chunk reaches its own logits, passes and parameters are counted, the state is cut off between steps, and what is written has the probability that is said."""
import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from shimmer.appending import append_tokens, generate_left_to_right
from shimmer.canvases import Canvases, EncodedCorpus
from shimmer.checkpoints import load_checkpoint
from shimmer.chunk_baseline import ChunkBaseline, ChunkBaselineConfig, ChunkTRMConfig, additive_mask
from shimmer.chunk_trm import ChunkTRM, chunk_grid
from shimmer.corruption import Batch, draw_noise
from shimmer.evaluation import chunk_nll
from shimmer.likelihood import bits_per_byte, left_to_right_nll, nll, paired_difference
from shimmer.models import load_model
from shimmer.schedules import DataSchedule, Stage, TrainConfig
from shimmer.testing import check_no_leak, total_probability
from shimmer.tokenizers import CharTokenizer
from shimmer.training import fit, flops_per_update
from shimmer.updates import BaseTrainer

V = 7
SHAPE = dict(vocab_size=V, context_size=6, chunk_size=3, embed_dim=16, n_layers=2, n_heads=2, dropout=0.1, n_refinements=2, n_recursions=2, supervision_steps=3)


def make(kind=ChunkTRM, seed=0, **options):
    "A float64 model in evaluation mode whose weights are large enough to make every difference visible."
    torch.manual_seed(seed)
    model = kind(ChunkTRMConfig(**SHAPE | options)).double().eval()
    with torch.no_grad():
        for p in model.network.parameters():
            if p.ndim == 2: p.mul_(2)
    return model


def texts(rows=4, length=9, seed=0): return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(seed))
def batch(rows=4, length=9, seed=0): return Batch(texts(rows, length, seed), draw_noise(rows, length, torch.Generator().manual_seed(seed)))
def close(a, b): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


shapes = st.sampled_from([dict(), dict(rotary=True), dict(chunk_size=1, context_size=8), dict(chunk_size=4, n_refinements=1), dict(mutual=False), dict(n_recursions=3, n_layers=1), dict(halting=True), dict(num_steps=2)])


# --- size and passes -------------------------------------------------------------------------------------------------

def test_golden_parameter_counts():
    config = ChunkTRMConfig(vocab_size=65)
    trm, baseline = ChunkTRM(config), ChunkBaseline(config)
    assert sum(p.numel() for p in baseline.parameters()) == 108_480
    assert {name: p.numel() for name, p in trm.named_parameters() if name.startswith("start")} == {"start_draft": 128, "start_reasoning": 128}
    assert sum(p.numel() for name, p in trm.named_parameters() if not name.startswith("start")) == 108_480
    assert {name for name, _ in trm.named_parameters()} - {name for name, _ in baseline.named_parameters()} == {"start_draft", "start_reasoning"}


def test_defaults_are_the_source_texts():
    c = ChunkTRMConfig(vocab_size=65)
    assert (c.context_size, c.chunk_size, c.embed_dim, c.n_layers, c.n_heads, c.dropout, c.n_refinements, c.n_recursions, c.supervision_steps) == (64, 2, 64, 2, 4, 0.2, 3, 6, 4)


@pytest.mark.parametrize("refinements, recursions, steps", [(3, 6, 1), (1, 1, 1), (2, 5, 3)])
def test_passes_are_counted(refinements, recursions, steps):
    model = make(n_refinements=refinements, n_recursions=recursions, num_steps=steps)
    count = []
    model.network.register_forward_hook(lambda *_: count.append(1))
    assert model(texts(length=6)).shape == (4, 3, V)
    assert len(count) == steps * refinements * (recursions + 1)
    if steps == 1 and refinements == 3: assert len(count) == 21
    count.clear()
    model.loss(batch())
    assert len(count) == refinements * (recursions + 1)


def test_operations_grow_with_refinements_and_supervised_steps():
    cost = {n: flops_per_update(make(supervision_steps=n, dropout=0.0).float(), None, 2, 9) for n in (1, 2, 4)}
    assert cost[4] == 2 * cost[2] == 4 * cost[1]
    assert flops_per_update(make(ChunkBaseline, dropout=0.0).float(), None, 2, 9) < flops_per_update(make(supervision_steps=1, n_refinements=1, n_recursions=1).float(), None, 2, 9) < cost[1]


# --- no leak ---------------------------------------------------------------------------------------------------------

@given(shapes, st.integers(0, 8), st.integers(0, 99))
@settings(max_examples=30)
def test_a_token_moves_the_logits_of_later_chunks_and_no_others(options, at, seed):
    model, ids = make(**options), texts(seed=seed)
    c, changed = model.config.chunk_size, ids.clone()
    changed[:, at] = (changed[:, at] + 1) % V
    moved = (model.next_token_logits(changed) != model.next_token_logits(ids)).any(-1).any(0)
    chunks = torch.arange(9) // c
    assert not moved[chunks <= at // c].any() and moved[chunks == at // c + 1].all()


class Leaky(ChunkTRM):
    "The published fault: the draft starts as the embedding of the target."
    def next_token_logits(self, ids):
        scene = self.look_at_canvas(ids, torch.zeros(len(ids), dtype=torch.int64))
        return self.read_tokens(self.step(self.embed(ids), torch.zeros_like(self.embed(ids)), scene)[0])


def test_the_check_passes_the_model_and_catches_the_published_fault():
    hidden = (torch.arange(9) >= 6).expand(4, -1)
    check_no_leak(lambda ids, hidden: make().next_token_logits(ids), texts(), hidden, tolerance=0)
    leaky = Leaky(make().config).double().eval()
    with pytest.raises(ValueError, match="hidden tokens leak"): check_no_leak(lambda ids, hidden: leaky.next_token_logits(ids), texts(), hidden)


def test_the_loss_compares_with_the_target_and_sees_no_more_of_it():
    "With offset 0 the last chunk is in no context: changing it changes the loss at its places alone."
    model, ids = make(dropout=0.0), texts()
    noise = torch.zeros(4, 10)
    seen = []
    read = model.read_tokens
    model.read_tokens = lambda x: seen.append(read(x)) or seen[-1]
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % V
    for text in (ids, other): model.loss(Batch(text, noise))
    assert seen[0].equal(seen[1])


def test_the_baseline_looks_back_only():
    model, ids = make(ChunkBaseline), texts()
    for at in range(9):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 1) % V
        moved = (model.next_token_logits(changed) != model.next_token_logits(ids)).any(-1).any(0)
        assert moved.tolist() == [i > at for i in range(9)]


# --- the same logits in every way ------------------------------------------------------------------------------------

@given(shapes, st.integers(0, 99))
@settings(max_examples=30)
def test_canvas_and_context_agree(options, seed):
    model, ids = make(**options), texts(seed=seed)
    c = model.config.chunk_size
    for start in range(0, min(9, model.config.context_size + 1), c): close(model.next_token_logits(ids)[:, start : start + c], model(ids[:, :start])[:, : 9 - start])


@pytest.mark.parametrize("kind", [ChunkTRM, ChunkBaseline])
@pytest.mark.parametrize("rotary", [False, True])
def test_pads_in_front_and_neighbours_change_nothing(kind, rotary):
    model, pad = make(kind, pad_token_id=V - 1, rotary=rotary), V - 1
    rows = [[1, 2, 3, 4, 5], [3, 1], [], [2]]
    padded = torch.tensor([[pad] * (5 - len(row)) + row for row in rows])
    together = model(padded)
    for i, row in enumerate(rows): close(together[i : i + 1], model(torch.tensor([row], dtype=torch.int64).view(1, -1)))


def test_only_the_last_tokens_of_a_long_context_are_read():
    for kind in (ChunkTRM, ChunkBaseline): assert make(kind)(texts(length=20)).equal(make(kind)(texts(length=20)[:, -6:]))


def test_the_cached_context_equals_reading_everything_in_every_pass():
    "A pass over the chunk with held keys is the network over context and chunk, where no token of the context sees the chunk."
    model, ids = make(), texts()
    context = ids[:, :6]
    scene = model.look_at_context(context)
    draft, reasoning = model.start(scene)
    one = model.network(draft + reasoning + scene.place + scene.last, scene.seen, None, scene.held)
    x = torch.cat([model.embed(context) + model.places(6)[0], draft + reasoning + scene.place + scene.last], 1)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    visible[6:, 6:] = True
    close(one, model.network(x, additive_mask(visible, torch.float64))[:, 6:])


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_the_grid_cuts_every_row_into_chunks(length, chunk, seed):
    offset = torch.randint(chunk, (3,), generator=torch.Generator().manual_seed(seed))
    grid = chunk_grid(length, chunk, offset)
    for r in range(3):
        cuts = sorted({0, *range(int(offset[r]), length, chunk)} & set(range(length)))
        expected = [max(s for s in cuts if s <= i) for i in range(length)]
        assert grid.start[r].tolist() == expected and grid.slot[r].tolist() == [i - s for i, s in enumerate(expected)]
        assert grid.mates[r].equal(grid.start[r][:, None] == grid.start[r]) and grid.slot[r].max() < chunk


def test_chunk_size_one_with_one_refinement_is_a_next_token_model():
    model, baseline, ids = make(chunk_size=1, n_refinements=1, n_recursions=1), make(ChunkBaseline, chunk_size=1), texts(length=7)
    assert model.next_token_logits(ids).shape == baseline.next_token_logits(ids).shape == (4, 7, V) and model(ids).shape == baseline(ids).shape == (4, 1, V)
    scene = model.look_at_canvas(ids, torch.zeros(4, dtype=torch.int64))
    past = torch.ones(7, 7, dtype=torch.bool).tril(-1)
    assert (scene.seen[:, 0] == 0).equal(torch.cat([past, torch.eye(7, dtype=torch.bool)], 1).expand(4, -1, -1))
    assert (scene.within[:, 0] == 0).equal(torch.eye(7, dtype=torch.bool).expand(4, -1, -1)) and not scene.slot.any()


def test_independent_heads_do_not_see_each_other():
    "What one token starts from moves the others where sight is mutual, and nothing else where it isn't."
    for mutual in (True, False):
        model, context = make(mutual=mutual), texts(length=6)
        before = model(context)
        with torch.no_grad(): model.start_draft[1] += 1
        assert (model(context) != before).any(-1).any(0).tolist() == ([True] * 3 if mutual else [False, True, False])


# --- deep supervision ------------------------------------------------------------------------------------------------

def test_only_the_last_refinement_has_a_gradient():
    model = make(dropout=0.0, n_refinements=2)
    scene = model.look_at_canvas(texts(), torch.zeros(4, dtype=torch.int64))
    start = tuple(s.detach().requires_grad_() for s in model.start(scene))
    assert model.step(*start, scene)[0].requires_grad
    model.step(*start, scene)[0].sum().backward()
    assert start[0].grad is None and start[1].grad is None


def char_corpus(length, rows=64):
    tokenizer = CharTokenizer("abcdefg", eos=False)
    ids = texts(rows + 8, length).tolist()
    dataset = lambda part: Dataset.from_dict({"ids": part}).with_format("torch")
    return EncodedCorpus(dataset(ids[:rows]), dataset(ids[rows:]), tokenizer, length, False)


def test_the_trainer_supervises_with_detached_state():
    model, seen = ChunkTRM(ChunkTRMConfig(**SHAPE)), []
    loss = model.loss
    model.loss = lambda b, *weight: seen.append((b.ids, b.state)) or loss(b, *weight)
    stage = Stage("next", epochs=1, data_fraction=1.0)
    trainer = BaseTrainer(model, Canvases(char_corpus(9).train), DataSchedule((stage,), 64, 8, 0), TrainConfig(batch_size=8, device="cpu"))
    before = model.embed_tokens.weight.detach().clone()
    for _ in range(2): trainer.update()
    assert [state is None for _, state in seen] == [True, False, False] * 2
    for ids, state in seen:
        if state is not None: assert not state[0].requires_grad and not state[1].requires_grad and state[0].shape == (8, 9, 16)
    assert seen[0][0].equal(seen[2][0]) and not seen[0][0].equal(seen[3][0]) and not before.equal(model.embed_tokens.weight)


def test_every_parameter_learns():
    for options in (dict(), dict(rotary=True), dict(halting=True), dict(mutual=False)):
        model = ChunkTRM(ChunkTRMConfig(**SHAPE | options | dict(n_refinements=1)))
        model.loss(batch(), 0.1)["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_it_learns_what_can_be_known():
    "Texts that count on: the next chunk follows from the last token."
    torch.manual_seed(0)
    model = ChunkTRM(ChunkTRMConfig(**SHAPE | dict(dropout=0.0, embed_dim=32, supervision_steps=2)))
    ids = (torch.arange(9) + torch.arange(V)[:, None]) % V
    dataset = lambda: Dataset.from_dict({"ids": ids.repeat(16, 1).tolist()}).with_format("torch")
    corpus = EncodedCorpus(dataset(), dataset(), CharTokenizer("abcdefg", eos=False), 9, False)
    model = fit(model, corpus, (Stage("next", epochs=20, data_fraction=1.0),), TrainConfig(batch_size=16, lr=3e-3, warmup_steps=10, ema_decay=0.9, device="cpu", progress=False)).model
    assert 3 * math.log(V) * 0.9 < nll(model, ids).max() < 3 * math.log(V) + 0.9  # nothing is known of the first chunk, whose tokens are drawn apart; all is known of the rest
    assert model.generate(ids[:, :4], 8, temperature=0).equal((torch.arange(12) + torch.arange(V)[:, None]) % V)


def test_a_killed_run_ends_in_the_same_weights(tmp_path):
    corpus, stage = char_corpus(9), Stage("next", epochs=2, data_fraction=1.0)
    config = lambda name: TrainConfig(batch_size=8, lr=1e-3, ema_decay=0.9, device="cpu", progress=False, checkpoint_dir=str(tmp_path / name), checkpoint_every=3, validation_texts=4)
    build = lambda: (torch.manual_seed(0), ChunkTRM(ChunkTRMConfig(**SHAPE)))[1]
    whole, model, calls = fit(build(), corpus, (stage,), config("whole")).model, build(), []
    loss = model.loss
    def mortal(*args):
        calls.append(1)
        if len(calls) == 17: raise KeyboardInterrupt
        return loss(*args)
    model.loss = mortal
    with pytest.raises(KeyboardInterrupt): fit(model, corpus, (stage,), config("killed"))
    resumed = fit(build(), corpus, (stage,), config("killed"), resume=True).model
    assert all(p.equal(q) for p, q in zip(whole.parameters(), resumed.parameters()))
    again, tokenizer = load_checkpoint(tmp_path / "killed")
    assert type(again) is ChunkTRM and again.next_token_logits(texts()).equal(resumed.next_token_logits(texts())) and tokenizer.vocab_size == V


# --- likelihood ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [ChunkTRM, ChunkBaseline])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_texts_add_up_to_one(kind, chunk):
    model = make(kind, vocab_size=4, context_size=3, chunk_size=chunk, embed_dim=8)
    assert total_probability(lambda ids: nll(model, ids), 4, 4) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("kept", [1, 3])
def test_continuations_add_up_to_one(kept):
    model = make(vocab_size=4, context_size=3, embed_dim=8)
    context = torch.tensor([[0, 2, 1]])
    assert total_probability(lambda ids: chunk_nll(model, torch.cat([context.expand(len(ids), -1), ids], 1), kept), 4, 3) == pytest.approx(1, rel=1e-6)


def test_a_chunk_is_a_product_of_marginals():
    model, ids = make(), texts()
    p = model(ids[:, :6]).log_softmax(-1)
    by_hand = -sum(p[torch.arange(4), i, ids[:, 6 + i]] for i in range(3))
    close(chunk_nll(model, ids), by_hand.detach())
    one_by_one = -sum(model(ids[:, i : 6 + i])[:, 0].log_softmax(-1)[torch.arange(4), ids[:, 6 + i]] for i in range(3))
    close(chunk_nll(model, ids, 1), one_by_one.detach())


def test_the_librarys_measures_work_unchanged():
    model, ids = make(), texts()
    close(nll(model, ids), left_to_right_nll(model, ids))
    assert bits_per_byte(nll(model, ids), ["abcdefghi"] * 4) > 0 and paired_difference(nll(model, ids), nll(make(ChunkBaseline), ids)).value != 0
    assert not model.training


def test_pieces_that_do_not_fit_are_refused():
    model = make()
    for length, kept, match in ((8, None, "2 behind a context of 6: give context_size and a multiple of 3"), (6, None, "0 behind"), (9, 4, "tokens_per_call is 4: ChunkTRM draws 1 to 3"), (9, 0, "tokens_per_call is 0")):
        with pytest.raises(ValueError, match=match): chunk_nll(model, texts(length=length), kept)
    with pytest.raises(ValueError, match="tokens_per_call is 2: ChunkBaseline draws 1 to 1"): chunk_nll(make(ChunkBaseline), texts(), 2)
    with pytest.raises(ValueError, match="10 tokens are read, max_seq_len is 9"): model.next_token_logits(texts(length=10))
    for kind in (ChunkTRM, ChunkBaseline):
        with pytest.raises(ValueError, match="stands in front of a token"): make(kind, pad_token_id=6).next_token_logits(torch.tensor([[6, 1, 2]]))


def test_pads_are_not_counted():
    for kind in (ChunkTRM, ChunkBaseline):
        model = make(kind, pad_token_id=6, dropout=0.0)
        ids = torch.tensor([[1, 2, 3, 4, 5, 6, 6, 6, 6]])
        noise = torch.zeros(1, 10)
        assert model.loss(Batch(ids, noise))["loss"].item() == pytest.approx(model.loss(Batch(ids[:, :6], noise[:, :7]))["loss"].item())


# --- halting ---------------------------------------------------------------------------------------------------------

def test_rows_halt_by_their_own_head():
    model, context = make(halting=True), texts(rows=6, length=6)
    scene = model.look_at_context(context)
    steps = [(logits, model.halt_logits(reasoning, scene.mates)[:, 0].sigmoid()) for logits, reasoning in model.answers(scene, 4)]
    above = torch.stack([halt for _, halt in steps]).median().item()
    out = model(context, num_steps=4, halt_above=above)
    for row in range(6):
        stop = next((n for n, (_, halt) in enumerate(steps) if halt[row] > above), 3)
        close(out[row], steps[stop][0][row])
    close(model(context, num_steps=4, halt_above=1.0), steps[-1][0])
    close(model(context, num_steps=4, halt_above=0.0), steps[0][0])


def test_the_halting_target_is_whether_the_whole_chunk_is_right():
    model, b = make(halting=True, dropout=0.0), Batch(texts(), torch.zeros(4, 10))
    logits = model.next_token_logits(b.ids)
    losses = model.loss(b, 0.5)
    right = (logits.argmax(-1) == b.ids).view(4, 3, 3).all(-1).repeat_interleave(3, 1).double()
    scene = model.look_at_canvas(b.ids, torch.zeros(4, dtype=torch.int64))
    head = model.halt_logits(losses["state"][1], scene.mates)
    assert losses["halting_loss"].item() == pytest.approx(F.binary_cross_entropy_with_logits(head, right).item())
    assert losses["loss"].item() == pytest.approx(losses["token_loss"].item() + 0.5 * losses["halting_loss"].item())
    assert "halting_loss" not in model.loss(b)
    with pytest.raises(ValueError, match="halting is False"): make()(texts(length=6), halt_above=0.5)


# --- writing ---------------------------------------------------------------------------------------------------------

@given(st.sampled_from([1, 2, 3]), st.integers(0, 50), st.integers(1, 8))
@settings(max_examples=25)
def test_what_is_written_has_the_probability_that_is_said(kept, seed, new):
    model, prompt = make(), texts(rows=2, length=6, seed=seed)
    ids, probs = append_tokens(model, prompt, new, temperature=1.0, seed=seed, tokens_per_call=kept)
    assert ids.shape == (2, 6 + new) and ids[:, :6].equal(prompt) and probs.shape == (2, new)
    if new % kept == 0:
        scored = torch.stack([model(ids[:, : 6 + i - i % kept])[torch.arange(2), i % kept].softmax(-1)[torch.arange(2), ids[:, 6 + i]] for i in range(new)], 1)
        close(probs, scored.detach())


def test_rows_write_alone_as_in_company_and_beyond_the_context():
    model = make(pad_token_id=6)
    prompts = [[1, 2, 3, 4], [5], []]
    ids = model.generate(prompts, 20, temperature=1.0, seed=3, eos_token_id=None)
    assert ids.shape == (3, 24) and (ids[:, 4:] != 6).all()
    for i, prompt in enumerate(prompts): assert model.generate([prompt], 20, temperature=1.0, seed=3 + i)[0].tolist() == ids[i, 4 - len(prompt) :].tolist()


def test_a_text_that_has_ended_stays_ended():
    model = make()
    ids, probs = append_tokens(model, [[1]] * 20, 8, temperature=1.5, eos_token_id=2)
    for row, prob in zip(ids[:, 1:].tolist(), probs.tolist()):
        if 2 in row: assert set(row[row.index(2) :]) == {2} and set(prob[row.index(2) + 1 :]) <= {1.0}


def test_the_record_has_a_chunk_a_call():
    model = make()
    run = generate_left_to_right(model, [[1, 2]], 7, 1.0, mask_token_id=V)
    assert run.num_calls.tolist() == [3] and run.written[:, 0].sum(1).tolist() == [3, 3, 1] and run.ids.equal(model.generate([[1, 2]], 7, temperature=1.0))
    assert ((run.confidence[:, 0] > 0) | run.confidence[:, 0].isnan()).all()
    assert generate_left_to_right(make(ChunkBaseline), [[1, 2]], 7, 1.0, mask_token_id=V).num_calls.tolist() == [7]


def test_prompts_and_settings_that_make_no_sense_are_refused():
    model = make()
    for call, match in ((lambda: model.generate([[9]], 3), "token 9"), (lambda: model.generate([1, 2], 3), "single row"), (lambda: model.generate([[1]], 3, temperature=-1), "temperature is -1"),
                        (lambda: model.generate([[1]], 0), "0 new tokens"), (lambda: model.generate([[1]], 3, tokens_per_call=4), "tokens_per_call is 4"), (lambda: model.generate([[1], [1, 2]], 3), "need a pad token")):
        with pytest.raises(ValueError, match=match): call()


@pytest.mark.parametrize("values, match", [(dict(vocab_size=0), "vocab_size is 0"), (dict(chunk_size=0), "chunk_size is 0"), (dict(n_recursions=0), "n_recursions is 0"), (dict(embed_dim=15), "embed_dim 15 is not divisible"),
                                           (dict(dropout=1.0), "dropout is 1.0"), (dict(pad_token_id=7), "pad_token_id is 7"), (dict(supervision_steps=0), "supervision_steps is 0")])
def test_shapes_that_can_not_be_built_are_refused(values, match):
    with pytest.raises(ValueError, match=match): ChunkTRMConfig(**SHAPE | values)


def test_the_token_before_the_first_must_exist():
    with pytest.raises(ValueError, match="bos_token_id is 7"): ChunkBaselineConfig(**SHAPE, bos_token_id=7)


@pytest.mark.parametrize("kind", [ChunkTRM, ChunkBaseline])
def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    model = make(kind).float()
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again) is kind and again.config == model.config and again.next_token_logits(texts()).equal(model.next_token_logits(texts()))


@pytest.mark.parametrize("kind", [ChunkTRM, ChunkBaseline])
def test_what_is_read_out_at_some_tokens_is_what_is_read_out_everywhere(kind):
    model, ids, at = make(kind), texts(), torch.rand(texts().shape, generator=torch.Generator().manual_seed(0)) < 0.5
    close(model.next_token_logits(ids, at), model.next_token_logits(ids)[at])
