"""The promises of a model, and checkpoints that load whole or say why not."""
import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from shimmer.appending import append_tokens
from shimmer.checkpoints import load_checkpoint
from shimmer.chunk_baseline import ChunkTRMConfig
from shimmer.chunk_trm import ChunkTRM
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.imadarem import ImplicitRefinementConfig, ImplicitRefinementModel
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import CausalLM, Denoiser, EIGHT_SENTENCES, ExactDenoiser, Prediction, PretrainedModel, default_policy, init_weights, load_model, revises
from shimmer.policies import EntropyBound, EntropyThreshold, RefineGate, TopK
from shimmer.samplers import generate_topk, make_canvas, refine
from shimmer.tokenizers import WordTokenizer

# checkpoints

@dataclass
class ToyConfig:
    vocab_size: int
    hidden_size: int = 4
    tie: bool = False
    rate: float = 0.5
    pad_token_id: int | None = None
    model_type: str = "toy"

    def __post_init__(self):
        if self.vocab_size < 1: raise ValueError(f"vocab_size is {self.vocab_size}: a model needs at least 1 token")


class Toy(PretrainedModel):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig, extra: str = ""):
        super().__init__()
        self.config, self.extra = config, extra
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        if config.tie: self.head.weight = self.embed.weight

    def forward(self, ids): return Prediction(self.head(self.embed(ids)))


@dataclass
class OtherConfig(ToyConfig):
    model_type: str = "other"


class Other(Toy):
    config_class = OtherConfig


class Ablation(Toy):
    "Names no config class of its own, so `load_model` keeps giving `Toy`."


@pytest.fixture
def saved(tmp_path):
    Toy(ToyConfig(5)).save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def refused(load, error, *words):
    "The error is one line that holds the words and, after a colon, what to do."
    with pytest.raises(error) as caught: load()
    message = str(caught.value)
    assert type(caught.value) is error and "\n" not in message and all(w in message for w in words) and ": " in message, message


def rewrite(directory, **fields):
    config = json.loads((directory / "config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.floats(0, 1), st.none() | st.integers(0, 8))
def test_round_trip(tmp_path_factory, vocab_size, hidden_size, tie, rate, pad_token_id):
    directory, config = tmp_path_factory.mktemp("toy"), ToyConfig(vocab_size, hidden_size, tie, rate, pad_token_id)
    model = Toy(config)
    model.steps += 7
    model.save_pretrained(directory)
    for load in (load_model, PretrainedModel.from_pretrained, Toy.from_pretrained, lambda d: load_model(str(d))):
        again = load(directory)
        assert type(again) is Toy and again.config == config and not again.training
        assert {n: t.tolist() for n, t in again.state_dict().items()} == {n: t.tolist() for n, t in model.state_dict().items()}
        assert (again.head.weight is again.embed.weight) == tie


def test_saving_writes_the_config_as_it_is_now_and_no_pickle(saved):
    model = load_model(saved)
    model.config = replace(model.config, rate=0.25)
    model.save_pretrained(saved)
    assert json.loads((saved / "config.json").read_text()) == asdict(model.config) and load_model(saved).config.rate == 0.25
    assert {f.name for f in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_subclass_without_a_config_class_loads_itself_and_only_itself(saved):
    assert type(Ablation.from_pretrained(saved)) is Ablation and type(load_model(saved)) is Toy


def test_what_a_model_takes_besides_its_config(saved):
    assert load_model(saved, extra="more").extra == "more"


def test_a_number_with_no_fraction_is_still_a_float(saved):
    rewrite(saved, rate=1)
    assert load_model(saved).config.rate == 1


def test_a_field_left_out_has_its_default(saved):
    rewrite(saved, rate="gone")
    assert load_model(saved).config.rate == 0.5


@pytest.mark.parametrize("source", ["no-such-model", "./a/b", "/no/such/dir", "a/b/c", "a\\b", "", "a/"])
def test_paths_that_lead_nowhere(source, monkeypatch):
    monkeypatch.setattr("shimmer.loading.hf_hub_download", lambda *args, **kwargs: pytest.fail("the Hub was asked for a path"))
    refused(lambda: load_model(source), FileNotFoundError, source, "config.json" if source == "" else "save_pretrained")


def test_a_path_below_an_existing_directory_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shimmer.loading.hf_hub_download", lambda *args, **kwargs: pytest.fail("the Hub was asked for a path"))
    (tmp_path / "runs").mkdir()
    refused(lambda: load_model("runs/best"), FileNotFoundError, "runs/best", "is not a directory")
    refused(lambda: load_model(tmp_path / "model.safetensors"), FileNotFoundError, "is not a directory")


def test_a_hub_id_that_cannot_be_had():
    refused(lambda: load_model("nobody/nothing"), FileNotFoundError, "nobody/nothing", "the Hub gave no config.json")


def test_a_hub_id_is_fetched_with_the_options_given(saved, monkeypatch):
    asked = []
    def download(repo, name, **options):
        asked.append((repo, name, options["revision"]))
        return str(saved / name)
    monkeypatch.setattr("shimmer.loading.hf_hub_download", download)
    assert type(load_model("owner/toy", revision="v1")) is Toy
    assert asked == [("owner/toy", "config.json", "v1"), ("owner/toy", "model.safetensors", "v1")]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_directory_that_lacks_a_file(saved, name):
    (saved / name).unlink()
    refused(lambda: load_model(saved), FileNotFoundError, str(saved), f"has no {name}")


@settings(max_examples=30)
@given(st.data())
def test_weights_cut_short_anywhere(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("toy")
    Toy(ToyConfig(5)).save_pretrained(directory)
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    refused(lambda: load_model(directory), ValueError, "model.safetensors", "no whole safetensors file")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"model_type": 3}', "\xff\xfe"])
def test_a_config_that_is_none(saved, text):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    refused(lambda: load_model(saved), ValueError, str(saved / "config.json"))


@pytest.mark.parametrize(("fields", "words"), [
    ({"num_heads": 3, "colour": "red"}, ["doesn't know (colour, num_heads)"]),
    ({"vocab_size": "gone"}, ["lacks vocab_size"]),
    ({"vocab_size": "5"}, ['vocab_size = "5"', "int"]),
    ({"vocab_size": 5.0}, ["vocab_size = 5.0", "int"]),
    ({"vocab_size": True}, ["vocab_size = true", "int"]),
    ({"pad_token_id": "x"}, ['pad_token_id = "x"', "int | None"]),
    ({"vocab_size": 0}, ["vocab_size is 0", "at least 1"]),
    ({"model_type": "unheard-of"}, ["'unheard-of'", "import the module"]),
    ({"model_type": "unheard_of"}, ["'unheard_of'", "import the module"]),
    ({"hidden_size": 8}, ["embed.weight (5, 4) for (5, 8)", "head.weight (5, 4) for (5, 8)"]),
    ({"vocab_size": 6}, ["embed.weight (5, 4) for (6, 4)"]),
    ({"tie": True}, ["doesn't know"]),
])
def test_a_config_of_something_else(saved, fields, words):
    rewrite(saved, **fields)
    refused(lambda: load_model(saved), ValueError, "config.json", *words)


def test_weights_that_lack_a_tensor(tmp_path):
    Toy(ToyConfig(5, tie=True)).save_pretrained(tmp_path)
    rewrite(tmp_path, tie=False)
    refused(lambda: load_model(tmp_path), ValueError, "lacks tensors of Toy", "weight")


def test_a_checkpoint_of_another_model(saved):
    refused(lambda: Other.from_pretrained(saved), ValueError, "'toy'", "Other loads 'other'", "load_model")
    rewrite(saved, model_type="other")
    assert type(load_model(saved)) is Other


def test_a_known_module_is_imported_for_its_model_type(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    import shimmer
    monkeypatch.setattr(shimmer, "__path__", [*shimmer.__path__, str(tmp_path)])
    (tmp_path / "latecomer.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\nfrom shimmer.models import PretrainedModel\n"
        "@dataclass\nclass LateConfig:\n    model_type: str = 'latecomer'\n"
        "class Late(PretrainedModel):\n    config_class = LateConfig\n"
        "    def __init__(self, config: LateConfig):\n        super().__init__()\n        self.config, self.layer = config, nn.Linear(1, 1)\n")
    Toy(ToyConfig(5)).save_pretrained(tmp_path / "toy")
    rewrite(tmp_path / "toy", model_type="latecomer")
    refused(lambda: load_model(tmp_path / "toy"), ValueError, "LateConfig doesn't know")


# --- promises --------------------------------------------------------------------------------------------------------

WORDS = WordTokenizer.train(EIGHT_SENTENCES)


def lira(**options): return LatentCanvasModel(LatentCanvasConfig(12, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=9, **options)).eval()


def imadarem(**options): return ImplicitRefinementModel(ImplicitRefinementConfig(12, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=9, **options)).eval()


def gpt(**options): return GPTModel(GPTConfig(12, hidden_size=16, num_layers=1, num_heads=2, max_seq_len=9, **options)).eval()


DENOISERS = {"lira": lira, "lira that carries": lambda: lira(carry_latent=True), "imadarem": imadarem, "imadarem without a gate": lambda: imadarem(use_refine_gate=False),
             "supervised imadarem": lambda: imadarem(gate_objective="supervised"), "imadarem that replaces": lambda: imadarem(gate_objective="replacement"), "exact": lambda: ExactDenoiser(EIGHT_SENTENCES, WORDS)}


@pytest.mark.parametrize("build", DENOISERS.values(), ids=DENOISERS)
def test_a_denoiser_keeps_its_promise(build):
    torch.manual_seed(0)
    model, g = build(), torch.Generator().manual_seed(1)
    assert isinstance(model, Denoiser) and not isinstance(model, CausalLM)
    ids = torch.randint(12, (3, 9), generator=g)
    ids[:, ::2] = model.config.mask_token_id
    with torch.no_grad():
        whole = model.denoise(ids)
        for at in (ids == model.config.mask_token_id, torch.rand(3, 9, generator=g) < 0.5, torch.zeros(3, 9, dtype=torch.bool)):
            part = model.denoise(ids, None, at)
            torch.testing.assert_close(part.logits, whole.logits[at])
            if whole.confidence is not None: torch.testing.assert_close(part.confidence, whole.confidence[at])
            assert part.logits.shape == (int(at.sum()), whole.logits.shape[-1])
    assert whole.logits.shape[:2] == ids.shape and (whole.confidence is None or whole.confidence.shape == ids.shape)


def test_a_causal_model_keeps_its_promise():
    torch.manual_seed(0)
    for model in (gpt(), gpt(pad_token_id=3), ChunkTRM(ChunkTRMConfig(12, context_size=6, embed_dim=16, n_layers=1, n_heads=2)).eval()):
        assert isinstance(model, CausalLM) and not isinstance(model, Denoiser)
        ids = torch.randint(4, 12, (3, 8))
        logits = model.next_token_logits(ids)
        assert logits.shape == (3, 8, 12)
        if isinstance(model, GPTModel):
            at = torch.rand(3, 8) < 0.5
            torch.testing.assert_close(model.next_token_logits(ids, at), logits[at])


def test_predictions_are_kept_where_they_are_asked_for():
    prediction = Prediction(torch.arange(12.0).view(1, 4, 3), torch.arange(4.0)[None], "state")
    at = torch.tensor([[True, False, False, True]])
    assert prediction.at(None) is prediction
    assert prediction.at(at).logits.equal(prediction.logits[0, [0, 3]]) and prediction.at(at).confidence.tolist() == [0, 3] and prediction.at(at).state == "state"
    assert Prediction(prediction.logits).at(at).confidence is None


@pytest.mark.parametrize("text", EIGHT_SENTENCES)
def test_the_exact_denoiser_is_exact(text):
    "The chain rule from left to right over its conditionals gives each sentence's probability."
    model = ExactDenoiser(EIGHT_SENTENCES, WORDS).double()
    row = model.texts[list(EIGHT_SENTENCES).index(text)]
    total = 0.0
    for i in range(len(row)):
        canvas = torch.where(torch.arange(len(row)) >= i, WORDS.mask_token_id, row)[None]
        total += model.denoise(canvas).logits[0, i, row[i]].item()
    assert math.exp(total) == pytest.approx(EIGHT_SENTENCES[text], rel=1e-6)


def test_a_model_names_its_own_policy():
    assert default_policy(lira()) == EntropyBound(gamma=0.1) and not revises(lira())
    assert isinstance(default_policy(imadarem()), RefineGate) and revises(imadarem())
    assert isinstance(default_policy(imadarem(use_refine_gate=False)), EntropyThreshold)
    exact = ExactDenoiser(EIGHT_SENTENCES, WORDS)
    assert default_policy(exact) is None and not revises(exact)


@pytest.mark.parametrize("call", [lambda m: generate_topk(m, [[1]]), lambda m: make_canvas(m, [[1]]), lambda m: refine(m, torch.zeros(1, 4, dtype=torch.int64), TopK(), 2)])
def test_a_model_that_appends_fills_no_canvas(call):
    with pytest.raises(ValueError, match="GPTModel has no denoise.*generate_left_to_right") as error: call(gpt())
    assert "\n" not in str(error.value)


def test_a_model_that_fills_canvases_appends_nothing():
    with pytest.raises(ValueError, match="LatentCanvasModel fills canvases and appends nothing: use generate_topk"): append_tokens(lira(), [[1]])


class Counting:
    "A causal model of one's own, without a base class: the next token is the last one plus one."
    class config: vocab_size, max_seq_len, pad_token_id = 7, 9, 6
    def next_token_logits(self, ids, at=None):
        before = nn.functional.pad(ids[:, :-1], (1, 0), value=-1)
        return 50.0 * nn.functional.one_hot((before + 1) % 6, 7).double()


def test_a_causal_model_of_ones_own_appends_to_prompts_of_any_length():
    ids, probs = append_tokens(Counting(), [[], [2], [4, 5, 0]], 4, temperature=0)
    assert [[i for i in row if i != 6] for row in ids.tolist()] == [[0, 1, 2, 3], [2, 3, 4, 5, 0], [4, 5, 0, 1, 2, 3, 4]]
    assert torch.allclose(probs, torch.ones(3, 4).double())
    ended, _ = append_tokens(Counting(), [[], [2]], 5, temperature=0, eos_token_id=4)
    assert [[i for i in row if i != 6] for row in ended.tolist()] == [[0, 1, 2, 3, 4], [2, 3, 4, 4, 4, 4]]


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_what_writes_to_the_residual_stream_begins_smaller(depth):
    torch.manual_seed(0)
    module = nn.ModuleDict({"up": nn.Linear(200, 200), "out": nn.Linear(200, 200), "norm": nn.LayerNorm(200)})
    init_weights(module, depth, skip=("up",))
    assert module["out"].weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.05)
    assert module["norm"].weight.eq(1).all() and module["up"].weight.std().item() > 0.03


# --- hostile checkpoints ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("field, value, match", [("hidden_size", 10**9, "sizes that no tensor has"), ("hidden_size", 10**29, "no model has"), ("num_layers", 10**6, "4,096 is the most"), ("num_layers", 4000, "lacks tensors"),
                                                 ("num_refine_steps", 10**6, "4,096 is the most"), ("vocab_size", 10**9, "other shapes"), ("num_refine_steps", 10**29, "no model has"), ("max_seq_len", -(10**30), "no model has")])
def test_absurd_sizes_are_refused_before_anything_is_built(field, value, match, tmp_path):
    lira().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError, match=match) as error: load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_json_without_an_end_to_its_depth_is_refused(tmp_path):
    lira().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"): load_model(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    model = lira()
    model.lm_head.weight.data[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="values that are no numbers .lm_head.weight"): load_model(tmp_path)


def test_a_home_of_nobody_is_no_directory():
    with pytest.raises(FileNotFoundError): load_model("~nobody-of-that-name/x")


def test_no_module_asks_what_a_model_has():
    "What a model can do is said by the two protocols; only the module that defines them may look."
    import pathlib
    import re
    import shimmer
    for path in pathlib.Path(shimmer.__file__).parent.glob("*.py"):
        asked = re.findall(r"hasattr\((?:self\.)?model,.*", path.read_text())
        assert not asked or path.stem == "models", (path.name, asked)


def test_importing_the_library_loads_nothing_heavy_and_loading_a_checkpoint_no_accelerate():
    import subprocess
    import sys
    code = "import sys, shimmer; assert 'torch' not in sys.modules; shimmer.load_checkpoint('tales'); assert 'accelerate' not in sys.modules; assert shimmer.fit and 'fit' in dir(shimmer)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_push_carries_the_card_and_the_tokenizer(tmp_path, monkeypatch):
    class Hub:
        def __init__(self, *args, **kwargs): pass
        def create_repo(self, repo_id, **kwargs): return SimpleNamespace(repo_id=repo_id)
        def upload_folder(self, *, repo_id, folder_path, **kwargs): return shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    tokenizer = WordTokenizer.train(["a cat and a dog"])
    model = LatentCanvasModel(LatentCanvasConfig(tokenizer.vocab_size, 16, 1, 2, pad_token_id=tokenizer.pad_token_id)).eval()
    model.push_to_hub("somebody/alone")
    model.push_to_hub("somebody/both", tokenizer=tokenizer)
    files = lambda name: {path.name for path in (tmp_path / "somebody" / name).iterdir()}
    assert files("alone") == {"config.json", "model.safetensors", "README.md"} and files("both") - files("alone") == {"shimmer_tokenizer.json"}
    again, theirs = load_checkpoint(tmp_path / "somebody" / "both")
    assert theirs.encode("a dog") == tokenizer.encode("a dog") and torch.equal(again.lm_head.weight, model.lm_head.weight)
    model.save_pretrained(tmp_path / "later")
    assert not (tmp_path / "later" / "shimmer_tokenizer.json").exists()
