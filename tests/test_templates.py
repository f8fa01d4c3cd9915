"Texts with gaps, and the length of a gap that nobody has counted."
import pytest
import torch

from shimmer.checkpoints import load_checkpoint
from shimmer.tales import Tales
from shimmer.templates import Template, choose_lengths, gap_nats, read_template
from shimmer.tokenizers import CharTokenizer, WordTokenizer


@pytest.fixture(scope="module")
def canvas(): return load_checkpoint("tales")


def test_gaps_by_tokenizer():
    words, letters = WordTokenizer.train(["a red ball."]), CharTokenizer.train(["a red ball."])
    mask = words.mask_token_id
    assert read_template("a ___ ball.", words).ids(mask) == [words.encode("a")[0], mask, *words.encode(" ball.")]
    assert read_template("[MASK:2].", words).ids(mask) == [mask] * 2 + words.encode(".")
    assert read_template("a __[MASK] [MASK]", letters).ids(letters.mask_token_id) == [*letters.encode("a "), letters.mask_token_id, letters.mask_token_id, *letters.encode(" "), letters.mask_token_id]


def test_lengths_by_number_and_by_flag():
    words = WordTokenizer.train(["a red ball."])
    assert read_template("a ___ [MASK:3].", words, gap_tokens=2).lengths == (2, 3)
    assert read_template("a ___ [MASK:3].", words, gap_tokens="auto").lengths == (None, 3)
    with pytest.raises(ValueError, match="gap 1 of the template has no length"): read_template("a ___.", words, gap_tokens="auto").ids(words.mask_token_id)


@pytest.mark.parametrize("text, tokens, said", [("a red ball.", 1, "no gap"), ("a [MASK:0].", 1, "no tokens"), ("a ___.", 0, "gap_tokens is 0"), ("a ___.", -3, "gap_tokens is -3")])
def test_what_is_no_template(text, tokens, said):
    with pytest.raises(ValueError, match=said): read_template(text, WordTokenizer.train(["a red ball."]), gap_tokens=tokens)


def exact_nats(canvas, template, lengths):
    "What follows the only gap, given what stands before it, by the sum over all tales."
    model, tok = canvas
    exact, found = Tales().denoiser(tok, model.config.max_seq_len), []
    for n in lengths:
        ids = Template(template.parts, (n,)).ids(tok.mask_token_id)
        if len(ids) > model.config.max_seq_len: break
        ids = torch.tensor([ids + [tok.eos_token_id] * (model.config.max_seq_len - len(ids))])
        before = ids.clone()
        before[:, len(template.parts[0]) :] = tok.mask_token_id
        found.append((exact.log_evidence(before) - exact.log_evidence(ids)).item())
    return torch.tensor(found, dtype=torch.float64)


def test_nats_of_a_perfect_model_are_the_evidence(canvas, monkeypatch):
    model, tok = canvas
    exact = Tales().denoiser(tok, model.config.max_seq_len)
    text = "Once upon a time, there was a girl named Lily. She loved her red ball. One day, she took it to the park. But the ball got ___. Lily was very sad. Then she met a very kind dog. The dog climbed up for it. They all went home and were happy."
    template = read_template(text, tok, gap_tokens="auto")
    import shimmer.templates
    from shimmer.policies import TopK
    monkeypatch.setattr(shimmer.templates, "EntropyBound", lambda: TopK(k=1))  # one a call: the chain rule, without loss
    assert torch.allclose(gap_nats(exact, template, 0, [1, 2], tok.eos_token_id), exact_nats(canvas, template, [1, 2]), atol=1e-6)


def test_the_canvas_chooses_as_the_truth_does(canvas):
    model, tok = canvas
    agreed = 0
    for text in Tales().sample(6, seed=5):
        first, second, *rest = text.split(". ")
        template = read_template(". ".join([first, "___. " + ". ".join(rest)]), tok, gap_tokens="auto")
        chosen, = choose_lengths(model, template, tok.eos_token_id, most=8).lengths
        agreed += chosen == int(exact_nats(canvas, template, range(1, 9)).argmin()) + 1
    assert agreed >= 4


def test_several_gaps_keep_what_is_given(canvas):
    model, tok = canvas
    template = read_template("Once upon a time, there was a ___ named Lily. ___ loved her red ball. One day, [MASK:1] took it to the park.", tok, gap_tokens="auto")
    found = choose_lengths(model, template, tok.eos_token_id)
    assert found.parts == template.parts and found.lengths == (1, 1, 1)
    assert choose_lengths(model, found, tok.eos_token_id) == found


def test_lengths_that_cannot_be_chosen(canvas):
    model, tok = canvas
    open_ended = read_template("Once upon a ___", tok, gap_tokens="auto")
    with pytest.raises(ValueError, match="nothing follows gap 1"): choose_lengths(model, open_ended)
    assert choose_lengths(model, open_ended, tok.eos_token_id).lengths[0] >= 1  # the end follows
    with pytest.raises(ValueError, match="most is 0"): choose_lengths(model, open_ended, tok.eos_token_id, most=0)
    crowded = Template((tuple(tok.encode("Once upon a time,") * 15), (0,)), (None,))
    with pytest.raises(ValueError, match="the canvas holds 72"): choose_lengths(model, crowded, tok.eos_token_id)
