"""Speculation on an alphabet small enough to enumerate every text: what is written has the likelihood that is said."""
import itertools
import math
import pytest
import torch
from scipy.stats import chi2
from shimmer.corruption import Batch, draw_noise
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.testing import check_no_leak, total_probability
from shimmer.speculation import SpeculativeCanvas, SpeculativeConfig, SpeculativeLM, rank_positions, speculate, speculative_nll

V, L = 3, 4

def speculative_likelihood(*arguments, **options): return -speculative_nll(*arguments, **options)

SIGMA = torch.tensor([2.0, 0.0, 3.0, 1.0])  # position 1 first, then 3, 0 and 2

def tiny(random: bool = True, pad: bool = False, seed: int = 0) -> SpeculativeCanvas:
    "A canvas of random weights, and a verify layer that says something else than the canvas."
    torch.manual_seed(seed)
    config = LatentCanvasConfig(
        V + pad, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2,
        max_seq_len=2 * L, pad_token_id=V if pad else None, mask_token_id=V + pad,
        position_embedding=True,
    )
    trunk = LatentCanvasModel(config)
    for p in trunk.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=0.5)
    model = SpeculativeCanvas.on(trunk).eval()
    if random:
        for p in model.verify_layer.parameters():
            if p.ndim > 1: torch.nn.init.normal_(p, std=0.4)
    return model

def masks(model: SpeculativeCanvas, rows: int, length: int = L) -> torch.Tensor:
    return torch.full((rows, length), model.config.mask_token_id)

def every_text(length: int = L) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(V), repeat=length)))

@pytest.mark.parametrize("most", [None, 1, 2, 3])
@pytest.mark.parametrize("passes", [1, 2, 9])
@pytest.mark.parametrize("seed", [0, 1])
def test_sums_to_one(seed: int, passes: int, most: int | None):
    model = tiny(seed=seed)
    measure = lambda ids: speculative_nll(model, ids, SIGMA, passes=passes, most=most)
    assert total_probability(measure, V, L) == pytest.approx(1, abs=1e-5)

def test_sums_to_one_given_tokens():
    model, texts = tiny(), every_text()
    given = torch.tensor([False, False, True, False])
    kept = texts[texts[:, 2] == 1]
    nats = speculative_nll(model, kept, SIGMA, given=given.expand(len(kept), L))
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)

def goodness(
    counts: torch.Tensor, log_p: torch.Tensor
) -> float:  # p-value, texts of less than 5 expected put together
    expected = log_p.exp() * counts.sum()
    few = expected < 5
    pool = lambda t: torch.cat([t[~few].double(), t[few].double().sum()[None]])
    seen, expected = pool(counts), pool(expected)
    seen, expected = seen[expected > 0], expected[expected > 0]
    return float(chi2.sf(((seen - expected) ** 2 / expected).sum().item(), len(seen) - 1))

def draw_counts(model: SpeculativeCanvas, canvas: torch.Tensor, n: int, **options) -> torch.Tensor:
    "How often each text comes, in batches of 10,000."
    counts, place = torch.zeros(V**L, dtype=torch.int64), V ** torch.arange(L - 1, -1, -1)
    for start in range(0, n, 10_000):
        ids = speculate(model, canvas.expand(10_000, L), L, seed=start, **options).ids
        counts += (ids * place).sum(1).bincount(minlength=V**L)
    return counts

LIMITS = [dict(passes=1), dict(passes=2), dict(passes=2, most=2), dict(passes=1, most=3)]

@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_samples_follow_the_likelihood(limits: dict):
    model, texts = tiny(), every_text()
    counts = draw_counts(model, masks(model, 1), 100_000 if limits == LIMITS[0] else 30_000, score=SIGMA, **limits)
    fit = lambda **o: goodness(counts, speculative_likelihood(model, texts, **o))
    assert fit(score=SIGMA, **limits) > 1e-3
    # the test would notice: neither another order nor another limit fits
    assert fit(score=-SIGMA, **limits) < 1e-9
    for other in LIMITS:
        if other != limits: assert fit(score=SIGMA, **other) < 1e-6, other

def test_tempered_samples_follow_tempered_logits():
    model, texts = tiny(), every_text()
    counts = draw_counts(model, masks(model, 1), 20_000, score=SIGMA, temperature=0.5)
    cold = tiny()
    cold.trunk.lm_head.weight.data *= 2
    assert goodness(counts, speculative_likelihood(cold, texts, score=SIGMA)) > 1e-3

def test_samples_go_on_from_what_is_given():
    model, texts = tiny(), every_text()
    canvas = masks(model, 1)
    canvas[:, 2] = 1
    counts = draw_counts(model, canvas, 20_000, score=SIGMA)
    given = torch.tensor([False, False, True, False]).expand(len(texts), L)
    log_p = speculative_likelihood(model, texts, score=SIGMA, given=given)
    assert goodness(counts, log_p.where(texts[:, 2] == 1, -math.inf)) > 1e-3

def test_the_law_is_no_autoregression():
    "q from the first call alone is another law: where calls begin matters."
    model, texts = tiny(), every_text()
    one_call = speculative_nll(model, texts, SIGMA, passes=L)  # never ends before the text does
    assert (one_call - speculative_nll(model, texts, SIGMA)).abs().max() > 0.05
    rank = rank_positions(torch.ones_like(texts, dtype=torch.bool), SIGMA.expand(texts.shape),
                          torch.ones_like(texts, dtype=torch.bool))
    masked = torch.ones_like(texts, dtype=torch.bool)
    z = model.draft(torch.full_like(texts, model.config.mask_token_id))
    q = model.verify(z, texts, rank, masked).detach().log_softmax(-1)
    chain = -q.gather(1, texts.flatten()[:, None]).view(texts.shape).sum(1)
    assert torch.allclose(chain.double(), one_call, atol=1e-5)

def test_a_layer_of_zeros_accepts_everything():
    model = tiny(random=False)
    made = speculate(model, masks(model, 500), L, seed=3)
    assert (made.num_calls == 1).all() and (made.accepted == L).all()
    texts = every_text()
    p = model.denoise(masks(model, len(texts))).logits.double().log_softmax(-1)
    independent = p.gather(-1, texts[..., None])[..., 0].sum(1).detach()
    assert torch.allclose(speculative_likelihood(model, texts), independent, atol=1e-6)

OPTIONS = [
    {}, {"passes": 2}, {"temperature": 0.0}, {"score": SIGMA}, {"most": 2},
    {"most": 2, "passes": 3},
]

@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_does_not_depend_on_its_batch(options: dict):
    model = tiny(seed=1)
    whole = speculate(model, masks(model, 24), L, seed=7, **options)
    for size in (1, 5):
        parts = [
            speculate(model, masks(model, len(rows)), L, seed=7 + int(rows[0]), **options)
            for rows in torch.arange(24).split(size)
        ]
        assert (torch.cat([part.ids for part in parts]) == whole.ids).all()
        assert (torch.cat([part.num_calls for part in parts]) == whole.num_calls).all()

def test_a_row_does_not_depend_on_its_pads():
    model = tiny(pad=True)
    canvas = masks(model, 32)
    padded = torch.nn.functional.pad(canvas, (0, 3), value=V)
    short, long = (speculate(model, c, L, seed=5) for c in (canvas, padded))
    assert (long.ids[:, :L] == short.ids).all() and (long.ids[:, L:] == V).all()
    assert not (short.ids == V).any()  # a pad is never written
    nats = speculative_nll(model, short.ids, seed=5)
    assert torch.allclose(nats, speculative_nll(model, long.ids, seed=5), atol=1e-5)
    measure = lambda ids: speculative_nll(model, ids, SIGMA)
    assert total_probability(measure, V, L) == pytest.approx(1, abs=1e-5)

def test_likelihood_of_rows_of_different_lengths():
    model = tiny(pad=True)
    texts = torch.tensor([[0, 1, 2, 0], [1, 2, V, V], [2, 0, 1, V]])
    score = torch.rand(3, L, generator=torch.Generator().manual_seed(0))
    alone = [
        speculative_nll(model, row[row != V][None], s[row != V][None])
        for row, s in zip(texts, score)
    ]
    assert torch.allclose(speculative_nll(model, texts, score), torch.cat(alone), atol=1e-5)
    halves = speculative_nll(model, texts, score, batch_size=2)
    assert torch.allclose(halves, torch.cat(alone), atol=1e-5)

def test_fixed_tokens_are_kept():
    model = tiny()
    canvas = masks(model, 200)
    canvas[:, 0], canvas[:, 2] = 2, 0
    made = speculate(model, canvas, L, fixed=(canvas != V)[:1])
    assert (made.ids[:, 0] == 2).all() and (made.ids[:, 2] == 0).all()
    assert not (made.ids == model.config.mask_token_id).any()
    full = made.ids
    again = speculate(model, full, L)
    assert (again.ids == full).all() and (again.num_calls == 0).all()
    with pytest.raises(ValueError, match="fixed positions"):
        speculate(model, masks(model, 1), L, fixed=torch.ones(1, L, dtype=torch.bool))

def test_one_token_a_call_is_the_canvas_alone():
    model, texts = tiny(), every_text()
    order, nats = SIGMA.argsort(), torch.zeros(len(texts), dtype=torch.float64)
    for s in range(L):
        canvas = texts.clone()
        canvas[:, order[s:]] = model.config.mask_token_id
        p = model.denoise(canvas).logits[:, order[s]].detach().double().log_softmax(-1)
        nats -= p.gather(1, texts[:, order[s], None])[:, 0]
    assert torch.allclose(speculative_nll(model, texts, SIGMA, most=1), nats, atol=1e-5)
    made = speculate(model, masks(model, 50), L, most=1)
    assert (made.num_calls == L).all() and (made.accepted == 1).all()

def test_calls_that_do_not_suffice_leave_masks():
    model = tiny()
    made = speculate(model, masks(model, 100), 1)
    assert (made.num_calls == 1).all() and (made.ids == V).any()
    at_least_two = (made.ids != V).sum(1)
    assert (at_least_two >= 2).all()  # the first draft, and the second or its redraw

def test_no_later_token_leaks():
    "q at a rank does not move with the tokens at its own rank and behind."
    model, g = tiny(), torch.Generator().manual_seed(0)
    ids = torch.randint(V, (8, L), generator=g)
    everything = torch.ones_like(ids, dtype=torch.bool)
    for given in (0, 1):
        masked = everything.clone()
        masked[:, :given] = False
        rank = rank_positions(masked, torch.rand(8, L, generator=g), everything)
        z = model.draft(ids.masked_fill(masked, model.config.mask_token_id))
        def predict(text, hidden):
            logits = torch.zeros(8, L, V)
            logits[masked] = model.verify(z, text, rank, masked)
            return logits
        for k in range(L - given):
            check_no_leak(predict, ids, hidden=rank >= k, read=rank == k, vocab_size=V)
        # and it does move with the token just before
        with pytest.raises(ValueError, match="leak"):
            check_no_leak(predict, ids, hidden=rank == 0, read=rank == 1, vocab_size=V)

def test_training_moves_the_verify_layer_alone():
    model = tiny(random=False).train()
    g = torch.Generator().manual_seed(0)
    # the second half repeats the first: drafts that don't know of each other can't
    half = torch.randint(V, (64, L // 2), generator=g)
    ids, before = half.repeat(1, 2), [p.clone() for p in model.trunk.parameters()]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    objective, losses = SpeculativeLM(mask_ratio=(1.0, 1.0)), []
    for _ in range(60):
        said = objective(model, Batch(ids, draw_noise(len(ids), L, g)))
        optimizer.zero_grad()
        said["loss"].backward()
        optimizer.step()
        losses.append(said["loss"].item())
    assert losses[0] == pytest.approx(said["draft_loss"].item(), abs=1.0)
    assert losses[-1] < losses[0] - 0.2 and losses[-1] < said["draft_loss"] - 0.2
    assert all((a == b).all() for a, b in zip(before, model.trunk.parameters()))
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad is not None for p in model.verify_layer.parameters())

def test_refusals():
    config = LatentCanvasConfig(V, hidden_size=16, num_heads=2, carry_latent=True)
    with pytest.raises(ValueError, match="carry_latent"):
        SpeculativeCanvas.on(LatentCanvasModel(config))
    with pytest.raises(ValueError, match="passes is 0"):
        speculate(tiny(), masks(tiny(), 1), 1, passes=0)
    with pytest.raises(ValueError, match="most is 0"):
        speculative_nll(tiny(), every_text(), most=0)
    with pytest.raises(ValueError, match="mask_ratio|ratio"): SpeculativeLM(mask_ratio=(0.0, 1.0))


def test_it_is_saved_and_loaded_with_its_canvas(tmp_path):
    from shimmer.models import load_model
    model = tiny()
    model.save_pretrained(tmp_path / "speculative")
    again = load_model(tmp_path / "speculative")
    texts = every_text()
    assert isinstance(again, SpeculativeCanvas) and speculative_nll(again, texts, SIGMA).equal(speculative_nll(model, texts, SIGMA))
    assert not any(p.requires_grad for p in again.trunk.parameters()) and all(p.requires_grad for p in again.verify_layer.parameters())


def test_training_moves_the_layer_and_leaves_the_canvas():
    from shimmer.schedules import Stage, TrainConfig
    from shimmer.training import fit
    model = tiny(random=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = torch.randint(V, (64, L), generator=torch.Generator().manual_seed(0))
    data[:, 1] = data[:, 0]  # two positions that hang together
    result = fit(model, data, [Stage("verify", epochs=8, data_fraction=1.0)], TrainConfig(batch_size=8, lr=1e-2, warmup_steps=2, validation_texts=2, validation_draws=1, device="cpu", progress=False))
    for name, p in result.model.named_parameters(): assert p.equal(before[name]) == name.startswith("trunk."), name
    rows = [row for row in result.log if "accepted" in row]
    assert rows[0]["accepted"] > rows[-1]["accepted"] and rows[-1]["loss"] < rows[-1]["draft_loss"]


@pytest.mark.parametrize("ask", [lambda model: speculate(model, torch.full((1, L), V), 4), lambda model: speculative_nll(model, torch.zeros(1, L, dtype=torch.int64))])
def test_a_canvas_without_the_layer_is_refused(ask):
    with pytest.raises(ValueError, match="has no verify layer: use SpeculativeCanvas.on"): ask(LatentCanvasModel(LatentCanvasConfig(V, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=L)))


def test_a_canvas_that_carries_its_latent_is_refused():
    with pytest.raises(ValueError, match="carry_latent"): SpeculativeConfig(V, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=L, carry_latent=True)
