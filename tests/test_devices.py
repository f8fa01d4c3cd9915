"""Writing, scoring and training on a device that has no float64 and doesn't mix with the CPU, as Apple's. The last two tests need /tmp/mps_fixes.patch."""
import pytest
import torch
from fake_device import DEVICE, Away, fake_device
from torch.nn import functional as F

from shimmer import appending, samplers
from shimmer.appending import append_tokens, generate_left_to_right
from shimmer.calibration import confidence_at_filled, confidence_at_masked
from shimmer.chunk_baseline import ChunkBaseline, ChunkBaselineConfig, ChunkTRMConfig
from shimmer.chunk_trm import ChunkTRM
from shimmer.corruption import Batch, draw_noise
from shimmer.evaluation import judged_fills
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.imadarem import ImplicitRefinementConfig, ImplicitRefinementModel
from shimmer.likelihood import duel_nll, exact_nelbo, left_to_right_nll, nelbo, nll
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import device_of
from shimmer.policies import EntropyThreshold, Order, RefineGate, ThresholdRemasking, TopK
from shimmer.samplers import make_canvas, refine


@pytest.mark.parametrize("ask, error, words", [
    (lambda x: x.double(), TypeError, "float64"), (lambda x: x.to(torch.float64), TypeError, "float64"), (lambda x: torch.zeros(2, dtype=torch.float64, device=DEVICE), TypeError, "float64"),
    (lambda x: torch.tensor([1.0], dtype=torch.float64, device=DEVICE), TypeError, "float64"), (lambda x: torch.rand(6, dtype=torch.float64).to(DEVICE), TypeError, "float64"), (lambda x: x.numpy(), TypeError, "numpy"),
    (lambda x: x + torch.ones(6), RuntimeError, "same device"), (lambda x: torch.where(x > 2, torch.ones(6), 0.0), RuntimeError, "same device"), (lambda x: torch.arange(6)[x.long()], RuntimeError, "same device"),
    (lambda x: torch.zeros(6).masked_scatter(x > 2, x), RuntimeError, "same device"), (lambda x: F.linear(torch.ones(1, 6), x[None]), RuntimeError, "same device"), (lambda x: x.__setitem__(slice(2), torch.ones(2)), RuntimeError, "same device"),
    (lambda x: torch.rand(6, device=DEVICE, generator=torch.Generator()), RuntimeError, "generator"),
])
def test_the_fake_device_refuses_what_a_real_one_does(ask, error, words):
    with fake_device() as device:
        x = torch.arange(6.0).to(device)
        with pytest.raises(error, match=words): ask(x)
        assert x.device == device and isinstance(x * torch.tensor(2.0) + 1, Away) and x[torch.tensor([1])].tolist() == [1.0] and type(x.cpu().double()) is torch.Tensor


SMALL = dict(hidden_size=16, num_layers=1, num_heads=2, max_seq_len=9)
CHUNKS = dict(context_size=6, embed_dim=16, n_layers=1, n_heads=2, pad_token_id=11)
FILLERS = {
    "lira": lambda: LatentCanvasModel(LatentCanvasConfig(12, **SMALL, pad_token_id=11)),
    "lira with everything": lambda: LatentCanvasModel(LatentCanvasConfig(12, **SMALL, pad_token_id=11, mask_token_id=10, position_embedding=True, qk_norm=True, tie_embeddings=True, num_prelude_layers=1, num_coda_layers=1,
                                                                         reinject=True, loop_embedding=True, carry_latent=True)),
    "imadarem": lambda: ImplicitRefinementModel(ImplicitRefinementConfig(12, **SMALL, pad_token_id=11, eos_token_id=10)),
    "imadarem without a gate": lambda: ImplicitRefinementModel(ImplicitRefinementConfig(12, **SMALL, pad_token_id=11, use_refine_gate=False)),
}
APPENDERS = {"gpt": lambda: GPTModel(GPTConfig(12, **SMALL, pad_token_id=11, qk_norm=True)), "chunk-TRM": lambda: ChunkTRM(ChunkTRMConfig(12, **CHUNKS)), "chunk baseline": lambda: ChunkBaseline(ChunkBaselineConfig(12, **CHUNKS))}


def opinionated(build):
    "A model that is sure of something everywhere."
    torch.manual_seed(0)
    model = build().eval()
    for p in model.parameters(): p.data.normal_(std=0.5)
    return model


def moved(model, device):
    "The model on the device, which it can't leave by accident."
    model = model.to(device)
    assert all(isinstance(t, Away) for t in [*model.parameters(), *model.buffers()])
    read = model.denoise if hasattr(model, "denoise") else model.next_token_logits
    with pytest.raises(RuntimeError, match="same device"): read(torch.zeros(1, 4, dtype=torch.int64))
    return model


@pytest.mark.parametrize("build", FILLERS.values(), ids=FILLERS)
@pytest.mark.parametrize("policy", [*(TopK("cosine", order) for order in Order.__args__), ThresholdRemasking(), RefineGate(), EntropyThreshold()], ids=str)
def test_canvases_are_filled_alike_on_a_device_without_float64(build, policy):
    write = lambda model: refine(model, make_canvas(model, [[1, 2], [3]], 6), policy, 5, seed=3, eos_token_id=7)
    here = write(opinionated(build))
    with fake_device() as device:
        there = write(moved(opinionated(build), device))
        assert not any(isinstance(t, Away) for t in vars(there).values())
    assert there.canvases.equal(here.canvases) and there.num_calls.equal(here.num_calls) and there.stop_reason == here.stop_reason
    torch.testing.assert_close(there.confidence, here.confidence)


@pytest.mark.parametrize("build", APPENDERS.values(), ids=APPENDERS)
@pytest.mark.parametrize("settings", [dict(), dict(use_cache=False), dict(top_k=3, eos_token_id=5), dict(top_p=0.7), dict(temperature=0)], ids=str)
def test_texts_are_continued_alike_on_a_device_without_float64(build, settings):
    write = lambda model: append_tokens(model, [[1, 2], [3]], 5, **settings)
    here = write(opinionated(build))
    with fake_device() as device:
        model = moved(opinionated(build), device)
        ids, probs = write(model)
        assert ids.tolist() == here[0].tolist()
        torch.testing.assert_close(probs.cpu(), here[1])
        assert generate_left_to_right(model, [[1, 2], [3]], 5).ids.device.type == "cpu"


@pytest.mark.parametrize("write", [lambda: refine(moved(opinionated(FILLERS["lira"]), DEVICE), torch.full((1, 4), 12), TopK(), 4), lambda: append_tokens(moved(opinionated(APPENDERS["gpt"]), DEVICE), [[1]], 3)])
def test_drawing_on_the_device_itself_would_fail(write, monkeypatch):
    for module in (samplers, appending): monkeypatch.setattr(module, "sampling_device", lambda device: device)
    with fake_device(), pytest.raises(TypeError, match="float64"): write()


IDS = torch.randint(0, 9, (5, 8), generator=torch.Generator().manual_seed(0))
def loss(model, ids):
    device, noise = device_of(model), draw_noise(5, 8, torch.Generator().manual_seed(1))
    return model.default_objective()(model, Batch(ids.to(device), noise.to(device), seed=1))["loss"].detach().cpu()
def judged(model, ids): return judged_fills(model, ids.to(device_of(model)))


@pytest.mark.parametrize("measure", [nelbo, exact_nelbo, left_to_right_nll, duel_nll, confidence_at_masked, confidence_at_filled, judged, loss])
@pytest.mark.parametrize("build", FILLERS.values(), ids=FILLERS)
def test_canvas_models_are_measured_alike_on_a_device_without_float64(build, measure):
    here = measure(opinionated(build), IDS)
    with fake_device() as device: torch.testing.assert_close(measure(moved(opinionated(build), device), IDS), here)


@pytest.mark.parametrize("measure", [nll, loss])
@pytest.mark.parametrize("build", APPENDERS.values(), ids=APPENDERS)
def test_appending_models_are_measured_alike_on_a_device_without_float64(build, measure):
    here = measure(opinionated(build), IDS)
    with fake_device() as device: torch.testing.assert_close(measure(moved(opinionated(build), device), IDS), here)
