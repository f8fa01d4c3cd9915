"""Writing and scoring on a device that has no float64 and doesn't mix with the CPU, as Apple's."""
import pytest
import torch
from fake_device import fake_device

from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import left_to_right_nll, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.policies import ThresholdRemasking, TopK, sampling_device
from shimmer.samplers import append_tokens, make_canvas, refine


def lira():
    torch.manual_seed(0)
    return LatentCanvasModel(LatentCanvasConfig(9, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, max_seq_len=8)).eval()


def gpt():
    torch.manual_seed(0)
    return GPTModel(GPTConfig(9, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=8, pad_token_id=8)).eval()


def test_the_device_refuses_what_such_devices_refuse():
    with fake_device() as device:
        with pytest.raises(TypeError, match="float64"): torch.zeros(2, device=device).double()
        with pytest.raises(RuntimeError, match="same device"): torch.zeros(2, device=device) + torch.zeros(2)
    assert sampling_device(torch.device("mps")).type == "cpu" and sampling_device(torch.device("cuda")).type == "cuda"


@pytest.mark.parametrize("policy", [TopK(), ThresholdRemasking()])
def test_canvases_are_filled_as_on_the_cpu(policy):
    model = lira()
    canvas = make_canvas(model, [[1, 2], [3, 4]])
    there = refine(model, canvas, policy, 8)
    with fake_device() as device: away = refine(model.to(device), canvas, policy, 8)
    assert away.ids.equal(there.ids) and away.canvases.equal(there.canvases) and away.ids.device.type == "cpu"


@pytest.mark.parametrize("use_cache", [True, False])
def test_texts_are_appended_as_on_the_cpu(use_cache):
    model, prompts = gpt(), [[1], [2, 3]]
    ids, probs = append_tokens(model, prompts, 5, use_cache=use_cache, eos_token_id=0)
    with fake_device() as device:
        away, away_probs = append_tokens(model.to(device), prompts, 5, use_cache=use_cache, eos_token_id=0)
        away = away.cpu()
    assert away.equal(ids) and torch.allclose(away_probs, probs)


@pytest.mark.parametrize("build, measure", [(lira, nelbo), (lira, left_to_right_nll), (gpt, left_to_right_nll)])
def test_texts_of_the_cpu_are_scored(build, measure):
    model, ids = build(), torch.randint(0, 8, (3, 8), generator=torch.Generator().manual_seed(1))
    there = measure(model, ids)
    with fake_device() as device: away = measure(model.to(device), ids)
    assert torch.allclose(away, there, atol=1e-4) and away.device.type == "cpu"
