"""The exact denoiser of the tales against the grammar itself and against a list of all tales."""
import itertools
import math
import time

import pytest
import torch

from shimmer.exact_tales import TalesDenoiser
from shimmer.loading import shipped_canvases
from shimmer.models import Denoiser, ExactDenoiser
from shimmer.tales import Tales, tell
from shimmer.tokenizers import CharTokenizer, WordTokenizer, load_tokenizer

LENGTH = 72
TALES, TOKENIZER = Tales(), load_tokenizer(shipped_canvases()["tales"])
MASK, PAD, EOS = TOKENIZER.mask_token_id, TOKENIZER.pad_token_id, TOKENIZER.eos_token_id
MODEL = TalesDenoiser(TALES, TOKENIZER, LENGTH)
# A line that may stay unsaid, cases, and words that are both a value and part of a line.
SMALL_CAST = dict(hero=("Lily", "Tom", "Mia"), thing=("ball", "cup"), feeling=("sad", "so"),
                  problem=("lost", "broken"))
SMALL_STORY = dict(
    before=("", "A tale.", "Once there was a {kind}."),
    opening=("A {kind} named {hero}.", "There was {hero}."),
    toy=("{They} had a {thing}.", "{hero} had the ball and a {thing}."),
    trouble=dict(lost=("The {thing} got lost.", "{They} lost it."),
                 broken=("It broke.", "{hero} broke the {thing} of {hero}.")),
    mood=("", "{hero} was so {feeling}."),
    ending=("{hero} was {feeling}.", "{They} felt {feeling}.", "So {feeling} was {hero}."),
)
SMALL = Tales(SMALL_CAST, SMALL_STORY)


def canvases(texts, tokenizer=TOKENIZER, length=LENGTH):
    rows = tokenizer.encode_batch(texts)
    return torch.tensor([row + [tokenizer.eos_token_id] * (length - len(row)) for row in rows])


def log_probs(tales, texts):
    return torch.tensor([tales.log_prob(text) for text in texts], dtype=torch.float64)


def all_tales(tales):
    "Every text of a grammar and its probability."
    told = itertools.product(*map(range, tales.sizes.values()))
    facts = [dict(zip(tales.cast, values)) for values in itertools.product(*tales.cast.values())]
    texts = {tell(tales.story, fact, list(lines), tales.heroes)
             for lines in told for fact in facts}
    return {text: math.exp(tales.log_prob(text)) for text in sorted(texts)}


def random_masks(ids, shares, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(ids.shape, generator=generator) < shares[:, None]


def test_it_is_a_denoiser():
    assert isinstance(MODEL, Denoiser)
    assert MODEL.config == (TOKENIZER.vocab_size, MASK, PAD, LENGTH)
    at = torch.zeros(2, LENGTH, dtype=torch.bool)
    at[0, 3], at[1, 60:] = True, True
    ids = canvases(TALES.sample(2, 0)).masked_fill(at, MASK)
    assert torch.equal(MODEL.denoise(ids, None, at).logits, MODEL.denoise(ids).logits[at])
    assert MODEL.denoise(ids[:0]).logits.shape == (0, LENGTH, TOKENIZER.vocab_size)
    assert MODEL.log_evidence(ids[:0]).shape == (0,)


def test_evidence_of_whole_tales_is_their_probability():
    texts = TALES.sample(300, 1)
    found = MODEL.log_evidence(canvases(texts))
    torch.testing.assert_close(found, log_probs(TALES, texts), rtol=0, atol=1e-10)


def test_nothing_revealed():
    ids = torch.full((1, LENGTH), MASK)
    assert MODEL.log_evidence(ids).item() == pytest.approx(0, abs=1e-12)
    probs = MODEL.denoise(ids).logits.exp()[0]
    torch.testing.assert_close(probs.sum(-1), torch.ones(LENGTH, dtype=torch.float64))
    sampled = canvases(TALES.sample(4000, 5))
    share = torch.nn.functional.one_hot(sampled, TOKENIZER.vocab_size).double().mean(0)
    assert (share - probs).abs().max() < 5 * (0.25 / 4000) ** 0.5
    assert not ((share > 0) & (probs == 0)).any()


@pytest.mark.parametrize("seed", range(4))
def test_chain_rule_in_any_order(seed):
    texts = TALES.sample(6, seed + 10)
    ids, generator = canvases(texts), torch.Generator().manual_seed(seed)
    now, total = torch.full_like(ids, MASK), torch.zeros(len(ids), dtype=torch.float64)
    rows, order = torch.arange(len(ids)), torch.rand(ids.shape, generator=generator).argsort(1)
    for column in order.T:
        logits, token = MODEL.denoise(now).logits, ids[rows, column]
        total += logits[rows, column, token]
        now[rows, column] = token
    torch.testing.assert_close(total, log_probs(TALES, texts), rtol=0, atol=1e-9)


def test_conditionals_are_ratios_of_evidence():
    ids = canvases(TALES.sample(6, 3))
    ids = ids.masked_fill(random_masks(ids, torch.linspace(.2, .97, 6), 0), MASK)
    logits, before = MODEL.denoise(ids).logits, MODEL.log_evidence(ids)
    for row, column in (ids == MASK).nonzero()[::7].tolist():
        filled = ids[row].repeat(TOKENIZER.vocab_size, 1)
        filled[:, column] = torch.arange(TOKENIZER.vocab_size)
        keep = filled[:, column] != PAD
        found = (MODEL.log_evidence(filled) - before[row])[keep].exp()
        torch.testing.assert_close(logits[row, column].exp()[keep], found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [WordTokenizer, CharTokenizer])
def test_against_a_list_of_all_tales(kind):
    texts = all_tales(SMALL)
    assert sum(texts.values()) == pytest.approx(1, abs=1e-12)
    tokenizer = kind.train(texts)
    brute = ExactDenoiser(texts, tokenizer)
    brute.p = torch.tensor(list(texts.values()), dtype=torch.float64)
    length, mask = brute.config.max_seq_len, tokenizer.mask_token_id
    model = TalesDenoiser(SMALL, tokenizer, length)
    whole = canvases(list(texts), tokenizer, length)
    torch.testing.assert_close(
        model.log_evidence(whole), brute.p.log(), rtol=0, atol=1e-12
    )
    generator = torch.Generator().manual_seed(0)
    ids = whole[torch.randint(len(whole), (48,), generator=generator)]
    hidden = random_masks(ids, torch.linspace(.3, 1.05, 48), 1)
    ids = ids.masked_fill(hidden, mask)
    ids[::5, -3:] = tokenizer.pad_token_id  # pads are not part of the text: as good as masks
    expected = brute.denoise(ids).logits
    found = model.denoise(ids).logits
    torch.testing.assert_close(found.exp(), expected.exp(), rtol=1e-9, atol=1e-12)
    assert torch.equal(found > -math.inf, expected > -math.inf)
    known = (ids != mask) & (ids != tokenizer.pad_token_id)
    fits = ((ids[:, None] == whole) | ~known[:, None]).all(-1).double()
    torch.testing.assert_close(
        model.log_evidence(ids).exp(), fits @ brute.p, rtol=1e-9, atol=0
    )


def test_a_cast_too_long_for_one_word_of_bits():
    heroes = {f"H{chr(97 + i // 26)}{chr(97 + i % 26)}": ("girl", "boy")[i % 2] for i in range(150)}
    tales = Tales(dict(hero=tuple(heroes), thing=("ball", "cup")),
                  dict(a=("{hero} had a {thing}.", "{They} had a {thing}."),
                       b=("{hero} lost it.",)), heroes)
    texts = all_tales(tales)
    tokenizer = WordTokenizer.train(texts)
    model, whole = TalesDenoiser(tales, tokenizer, 12), canvases(list(texts), tokenizer, 12)
    expected = log_probs(tales, texts)
    torch.testing.assert_close(model.log_evidence(whole), expected, rtol=0, atol=1e-10)
    hidden = whole.masked_fill(whole == whole[0, 0], tokenizer.mask_token_id)[:5]
    hidden[:, 5:] = tokenizer.mask_token_id
    fits = ((hidden[:, None] == whole) | (hidden == tokenizer.mask_token_id)[:, None]).all(-1)
    torch.testing.assert_close(
        model.log_evidence(hidden).exp(), fits.double() @ expected.exp(), rtol=1e-9, atol=0
    )


def test_impossible_canvases():
    ids = canvases(TALES.sample(4, 2))
    good = MODEL.denoise(ids).logits[3]
    one = lambda text: TOKENIZER.encode(text)[0]
    ids[0, 0] = one(" park")  # no tale begins so
    ids[1, 40] = EOS  # the end before the end
    ids[2, -1] = one(" park")  # no end at the end of the canvas
    evidence = MODEL.log_evidence(ids)
    assert (evidence[:3] == -math.inf).all() and evidence[3] > -math.inf
    probs = MODEL.denoise(ids).logits.exp()
    text = [i for i in range(TOKENIZER.vocab_size) if i not in (EOS, PAD)]
    assert (probs[:3, :, text] - 1 / len(text)).abs().max() < 1e-12
    assert (probs[:3, :, [EOS, PAD]] == 0).all()
    assert torch.equal(MODEL.denoise(ids).logits[3], good)
    # facts that disagree far apart, and nothing else revealed
    text = "Once upon a time, there was a girl named Lily."
    far = torch.full((2, LENGTH), MASK)
    row = TOKENIZER.encode(text)
    far[:, :len(row)] = torch.tensor(row)
    far[0, len(row)], far[1, len(row)] = one(" She"), one(" He")
    assert (MODEL.log_evidence(far) > -math.inf).tolist() == [True, False]


def test_ends_and_pads():
    (text,) = TALES.sample(1, 4)
    ids, n = canvases([text]), len(TOKENIZER.encode(text))
    expected = TALES.log_prob(text)
    padded, short, unended = ids.clone(), ids[:, :n + 1], ids.clone()
    padded[:, n + 1:] = PAD
    unended[:, n:] = MASK
    for canvas in (padded, short):  # one end token says it all
        assert MODEL.log_evidence(canvas).item() == pytest.approx(expected, abs=1e-10)
    # all that may follow a whole tale is its end
    assert MODEL.log_evidence(unended).item() == pytest.approx(expected, abs=1e-10)
    logits = MODEL.denoise(unended).logits
    assert logits[0, n:, EOS].exp().tolist() == pytest.approx([1] * (LENGTH - n))
    # where the canvas ends is known before the tale is
    ends = torch.full((1, LENGTH), MASK)
    ends[0, 62:] = EOS
    shortest = MODEL.denoise(ends).logits[0, 61]
    assert shortest[TOKENIZER.encode(".")[0]].exp().item() == pytest.approx(1)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="raise max_seq_len"): TalesDenoiser(TALES, TOKENIZER, 60)
    TalesDenoiser(TALES, TOKENIZER, 71)  # 70 tokens and an end
    with pytest.raises(ValueError, match="raise max_seq_len"): TalesDenoiser(TALES, TOKENIZER, 70)
    with pytest.raises(ValueError, match="max_seq_len is 72"):
        MODEL.denoise(torch.full((1, LENGTH + 1), MASK))
    texts = TALES.sample(2000, 0)
    with pytest.raises(ValueError, match="tales end"):
        TalesDenoiser(TALES, WordTokenizer.train(texts, eos=False), LENGTH)
    plural = Tales(dict(hero=("Tom",), thing=("ball", "cup")), dict(a=("{hero} had {thing}s.",)))
    tokenizer = WordTokenizer.train(["Tom had balls cups. ball cup", "s"])
    with pytest.raises(ValueError, match="not those of its words"):
        TalesDenoiser(plural, tokenizer, LENGTH)


def test_a_batch_takes_seconds_at_most():
    ids = canvases(TALES.sample(32, 6))
    ids = ids.masked_fill(random_masks(ids, torch.linspace(.5, 1, 32), 2), MASK)
    start = time.perf_counter()
    MODEL.denoise(ids)
    assert time.perf_counter() - start < 5
