"""The tokenizer contract, exact round trips over any text, saving and loading, and canvases that lose nothing."""
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings, strategies as st

from shimmer import canvases, subwords
from shimmer.canvases import encode_corpus
from shimmer.subwords import HuggingFaceTokenizer, SentencePieceTokenizer
from shimmer.tokenizers import CharTokenizer, TOKENIZER_FILE, WordTokenizer, check_contract, load_tokenizer, special_token_ids, train_tokenizer

TEXTS = ["Once upon a time there was a small fox.\nIt ran to the hill, and the hill was green.",
         "The old owl said: \"Come in, little fox, it is cold.\" So the fox came in.",
         "A hen and a hare went to the river. They saw a boat; nobody was in it!",
         "\"Why?\" asked the hare. \"Because,\" said the hen, \"rivers like boats.\""]
HARD = ["", " ", "  two  spaces  ", "\n\n a\n", "\ttab\r\n", "\u2581", "a\u2581\u2581 b\u2581", "\0", "\u00e2\u20ac\u0153damaged\u00e2\u20ac", "\ufffd", "\u2047", "\u2585",
        "<eos><pad><mask><unk><0x41></s>", "e\u0301 \u00e9", "\U0001F600 \u6771\u4eac", "\ufb01 \u2126 \uff21", "\u00a0\u3000\u200b\u2028", "x" * 5000]
any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\u2581\0\u201c<>"), max_size=60)


def corpus(train, valid, documents=True):
    return SimpleNamespace(name="toy", documents=documents, train=Dataset.from_dict({"text": train}), valid=Dataset.from_dict({"text": valid}))


def hf_byte_level():
    import tokenizers, transformers
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer, raw.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    raw.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["[PAD]", "[MASK]", "[EOS]"], show_progress=False,
                                                                  initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", mask_token="[MASK]", eos_token="[EOS]")


@pytest.fixture(scope="module")
def family():
    return {"char": CharTokenizer.train(TEXTS), "word": WordTokenizer.train(TEXTS), "unigram": SentencePieceTokenizer.train(TEXTS, 320),
            "bpe": SentencePieceTokenizer.train(TEXTS, 320, model_type="bpe"), "huggingface": HuggingFaceTokenizer(hf_byte_level())}


SPECIAL_WORDS = ["<mask>", "[MASK]", "<|endoftext|>", "<pad>", "[PAD]", "<eos>", "[EOS]", "<unk>", "</s>", "<s>", "<0x41>"]


def hf_unigram(characters):
    "A Unigram vocabulary, like those of T5 and XLM-R, that has its special tokens among its pieces."
    import tokenizers, transformers
    pieces = [*((name, 0.0) for name in ("<mask>", "<pad>", "<|endoftext|>", "<unk>")), ("\u2581the", -2.0), ("cat", -3.0)]
    raw = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces + [(c, -9.0) for c in characters], unk_id=3))
    raw.pre_tokenizer, raw.decoder = (part.Metaspace(prepend_scheme="never") for part in (tokenizers.pre_tokenizers, tokenizers.decoders))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="<mask>", pad_token="<pad>", eos_token="<|endoftext|>", unk_token="<unk>")


def hf_words():
    "A table of words, which finds its special tokens between spaces."
    import tokenizers, transformers
    names = ["<mask>", "<pad>", "<|endoftext|>", "<unk>", "the", " ", "cat"]
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = tokenizers.pre_tokenizers.Split(" ", "isolated"), tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, mask_token="<mask>", pad_token="<pad>", eos_token="<|endoftext|>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["char", "word", "unigram", "bpe", "bpe that met them", "huggingface", "huggingface unigram"])
def test_special_words_in_a_text_stay_text(family, kind):
    words = [word for word in SPECIAL_WORDS if (kind, word) != ("huggingface unigram", "<unk>")]  # it merges what it doesn't know
    sentences = [f"the {word} cat {word}{word}\n{word}" for word in words]
    tokenizer = {"char": lambda: CharTokenizer.train(sentences), "word": lambda: WordTokenizer.train(sentences),
                 "bpe that met them": lambda: SentencePieceTokenizer.train(sentences * 50, 340, model_type="bpe"),
                 "huggingface unigram": lambda: HuggingFaceTokenizer(hf_unigram(sorted(set("".join(sentences).replace(" ", "\u2581")))))
                 }.get(kind, lambda: family[kind])()
    special = check_contract(tokenizer, sentences + ["".join(words)])
    for word in words: assert not {*special} & {*tokenizer.encode(word)} and tokenizer.decode(tokenizer.encode(word)) == word


@pytest.mark.parametrize("make", [hf_words, lambda: hf_unigram("\u2581acthe")])
def test_special_words_that_can_not_be_written_are_refused(make):
    tokenizer = HuggingFaceTokenizer(make())
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    for word in ("<mask>", "<pad>", "<|endoftext|>"):
        with pytest.raises(ValueError, match=rf"holds '{re.escape(word)}'.*take it out, or use another tokenizer"): tokenizer.encode(f"the {word} cat")
    assert tokenizer.decode(tokenizer.encode("the x cat")) == "the  cat", "what is unknown is lost, as this tokenizer has it"


KINDS = ["char", "word", "unigram", "bpe", "huggingface"]
ANY_TEXT = ["unigram", "bpe", "huggingface"]


# the special ids

def special(mask, pad=None, eos=None, sep=None):
    return special_token_ids(SimpleNamespace(mask_token_id=mask, pad_token_id=pad, eos_token_id=eos, sep_token_id=sep))


def test_fallbacks_of_the_contract():
    assert special(9, 1, 2, 3) == (9, 1, 2)
    assert special(9, None, None, 3) == (9, 0, 3)
    assert special(9, None, 0 + 5, 3) == (9, 0, 5)
    assert special(9) == (9, 0, None)
    assert special(9, 1, eos=0, sep=3) == (9, 1, 0), "an end with id 0 is an end"
    assert special_token_ids(SimpleNamespace(mask_token_id=4)) == (4, 0, None), "attributes may be absent"


@pytest.mark.parametrize("ids", [(None,), (0,), (3, 3), (3, 1, 3), (3, 1, None, 3), (3, 2, 2), (3, 2, None, 2), (3, None, 0)])
def test_missing_mask_and_collisions_are_refused(ids):
    with pytest.raises(ValueError, match="token_id.*: .*; ?.*add") as caught: special(*ids)
    assert "\n" not in str(caught.value)


@given(st.lists(st.none() | st.integers(0, 4), min_size=4, max_size=4))
def test_what_is_accepted_has_three_different_ids(ids):
    mask, pad, eos, sep = ids
    try: found = special(mask, pad, eos, sep)
    except ValueError: assert mask is None or len({mask, pad or 0, eos if eos is not None else sep}) < 3
    else: assert found == (mask, pad or 0, eos if eos is not None else sep) and len(set(found)) == 3


# round trips

@pytest.mark.parametrize("kind", KINDS)
def test_contract_holds_on_training_texts(family, kind):
    tokenizer = family[kind]
    assert check_contract(tokenizer, TEXTS) == (tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.mask_token_id == tokenizer.vocab_size or kind == "huggingface"
    assert tokenizer.eos_token_id < tokenizer.vocab_size and tokenizer.pad_token_id < tokenizer.vocab_size


@pytest.mark.parametrize("kind", ANY_TEXT)
def test_adversarial_texts_round_trip(family, kind): check_contract(family[kind], HARD)


@pytest.mark.parametrize("kind", ANY_TEXT)
@settings(max_examples=150, deadline=None)
@given(text=any_text)
def test_any_text_round_trips(family, kind, text): check_contract(family[kind], [text])


@settings(max_examples=200, deadline=None)
@given(text=any_text)
def test_tables_split_without_gaps_and_decode_what_they_encode(text):
    for cls in (CharTokenizer, WordTokenizer):
        assert "".join(cls.split(text)) == text
        if text: check_contract(cls.train([text]), [text])


@settings(max_examples=100, deadline=None)
@given(text=any_text)
def test_pieces_joined_are_the_text_for_the_first_split(family, text):
    ids = family["unigram"].encode(text) + family["unigram"].encode(text)
    assert family["unigram"].decode(ids) == text + text


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_are_dropped_shown_and_never_out_of_range(family, kind):
    tokenizer = family[kind]
    ids = tokenizer.encode("The old fox")
    noisy = [tokenizer.mask_token_id, *ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(noisy) == tokenizer.decode(torch.tensor(noisy)) == tokenizer.decode(np.array(noisy)) == "The old fox"
    assert [tokenizer.token(i) for i in (noisy[0], noisy[-2], noisy[-1])] == ["<mask>", "<eos>", "<pad>"]
    assert "".join(tokenizer.token(i) for i in ids) == "The old fox"
    assert tokenizer.encode_batch([]) == [] and tokenizer.decode([]) == ""
    for bad in (-1, max(tokenizer.vocab_size, tokenizer.mask_token_id + 1)):
        with pytest.raises(ValueError, match="does not exist"): tokenizer.decode([bad])


def test_check_contract_shows_the_first_offending_text():
    class Lower(CharTokenizer):
        def encode(self, text): return super().encode(text.lower())
    tokenizer = Lower.train(["abAB"])
    check_contract(tokenizer, ["ab"])
    with pytest.raises(ValueError, match="'aB' comes back as 'ab'"): check_contract(tokenizer, ["ab", "aB", "BB"])
    with pytest.raises(ValueError, match="10001 characters, at 9000 ") as caught: check_contract(tokenizer, ["a" * 9000 + "B" + "a" * 1000])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("fault, message", [(lambda ids: ids + [99], "must be below"), (lambda ids: [5] + ids, "special ids")])
def test_check_contract_refuses_foreign_and_special_ids(fault, message):
    class Faulty(CharTokenizer):
        def encode(self, text): return fault(super().encode(text))
    tokenizer = Faulty(list("abcde"), eos=True)
    with pytest.raises(ValueError, match=message): check_contract(tokenizer, ["ab"])


def test_check_contract_compares_batches_with_single_calls():
    class Faulty(CharTokenizer):
        def encode_batch(self, texts): return [self.encode(text)[::-1] for text in texts]
    with pytest.raises(ValueError, match="in a batch"): check_contract(Faulty(list("ab")), ["ab"])


def test_check_contract_takes_a_tokenizer_as_it_comes():
    assert check_contract(hf_byte_level(), TEXTS) == (1, 0, 2)


# tables

def test_a_table_has_one_id_a_character_and_two_more_where_texts_end():
    alphabet = "".join(map(chr, range(40, 105)))
    assert len(alphabet) == 65 == CharTokenizer.train(alphabet, eos=False).vocab_size
    endless = CharTokenizer.train([alphabet], eos=False)
    assert (endless.eos_token_id, endless.pad_token_id, endless.mask_token_id) == (None, None, 65)
    ending = CharTokenizer.train([alphabet], eos=True)
    assert (ending.vocab_size, ending.eos_token_id, ending.pad_token_id, ending.mask_token_id) == (67, 65, 66, 67)


def test_unknown_pieces_are_named():
    with pytest.raises(ValueError, match="unknown characters '%', '7'.*both splits"): CharTokenizer.train(["abc"]).encode("7a%7")
    with pytest.raises(ValueError, match="unknown word ' quokka'"): WordTokenizer.train(["a fox"]).encode("a quokka")


@pytest.mark.parametrize("pieces", [[], ["a", "a"], ["a", ""], ["a", 3]])
def test_damaged_tables_are_refused(pieces):
    with pytest.raises(ValueError, match="a table needs"): CharTokenizer(pieces)


# pieces

@pytest.mark.parametrize("eos", [True, False])
def test_asked_number_of_ids_includes_specials(eos):
    tokenizer = SentencePieceTokenizer.train(TEXTS, 315, eos=eos)
    assert tokenizer.vocab_size == tokenizer.mask_token_id == 315
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == ((0, 1) if eos else (None, None))
    check_contract(tokenizer, HARD)


def test_training_is_deterministic_and_reads_an_iterator_once():
    words = "fox hen owl hare red old hill river barn wood boat small green cold away running".split()
    many = [" ".join(words[(i * k) % 16] for k in (1, 3, 7, i)) for i in range(400)]
    made = lambda size=290, seed=3: SentencePieceTokenizer.train(iter(many), size, seed=seed, sample_lines=150).fingerprint()
    assert made() == made() and len({made(), made(size=289), made(seed=4)}) == 3


def test_sizes_that_cannot_be_met_say_what_can():
    with pytest.raises(ValueError, match="at most") as caught: SentencePieceTokenizer.train(TEXTS, 10_000)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert SentencePieceTokenizer.train(TEXTS, most).vocab_size == most
    with pytest.raises(ValueError, match="alone take"): SentencePieceTokenizer.train(TEXTS, 50)
    with pytest.raises(ValueError, match="no text"): SentencePieceTokenizer.train([""], 300)
    with pytest.raises(ValueError, match="'unigram' or 'bpe'"): SentencePieceTokenizer.train(TEXTS, 300, model_type="chars")


def test_no_training_text_is_lost_to_tabs_or_length():
    lines = list(subwords._training_lines(["a\tb\u2581c\0d\n\ne", "x" * 10_000]))
    assert lines[:5] == list("abcde") and "".join(lines[5:]) == "x" * 10_000 and max(map(len, lines)) == 4096


# saving

@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizers_come_back_the_same(family, kind, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    family[kind].save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(family[kind]) and again.fingerprint() == family[kind].fingerprint()
    assert again.encode_batch(TEXTS) == family[kind].encode_batch(TEXTS)
    assert special_token_ids(again) == special_token_ids(family[kind]) and again.vocab_size == family[kind].vocab_size
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_fingerprints_differ_where_encodings_do(family):
    prints = {tokenizer.fingerprint() for tokenizer in family.values()}
    others = [CharTokenizer.train(TEXTS, eos=False), CharTokenizer.train(TEXTS[:1]), WordTokenizer.train(TEXTS[:1])]
    assert len(prints | {tokenizer.fingerprint() for tokenizer in others}) == len(family) + len(others)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"kind": "char"}', '{"kind": "char", "state": {}}', '{"kind": "char", "state": 3}',
                                     '{"kind": "char", "state": {"pieces": ["a", "a"], "eos": true}}', '{"kind": "pickle", "state": {}}',
                                     '{"kind": ["char"], "state": {}}', '{"kind": "sentencepiece", "state": {"sha256": "0"}}', '{"kind": "huggingface", "state": {}}', "\xff"])
def test_damaged_files_give_one_clear_line(tmp_path, content):
    (tmp_path / TOKENIZER_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises((ValueError, FileNotFoundError)) as caught: load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and ("again" in str(caught.value) or "shimmer" in str(caught.value) or "train" in str(caught.value))


def test_missing_and_mixed_files(family, tmp_path):
    with pytest.raises(FileNotFoundError, match="save_pretrained"): load_tokenizer(tmp_path)
    family["unigram"].save_pretrained(tmp_path)
    model = tmp_path / "sentencepiece.model"
    model.write_bytes(family["bpe"]._model)
    with pytest.raises(ValueError, match="sha256"): load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(FileNotFoundError, match="sentencepiece.model"): load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no SentencePiece model"): SentencePieceTokenizer(b"not a model")


# a corpus

def test_one_table_for_both_splits():
    two = corpus(["abc"], ["xyz"])
    for kind in ("char", "word"): check_contract(train_tokenizer(two, kind), ["abc", "xyz"])
    assert train_tokenizer(two, "char").eos_token_id is not None
    assert train_tokenizer(corpus(["abc"], ["xyz"], documents=False), "char").vocab_size == 6


def test_pieces_are_learned_from_the_training_split_alone():
    one, other = corpus(TEXTS, ["fox"]), corpus(TEXTS, ["zebras zigzag"] * 50)
    for kind in ("unigram", "bpe"): assert train_tokenizer(one, kind, 320).fingerprint() == train_tokenizer(other, kind, 320).fingerprint()


@pytest.mark.parametrize("arguments, message", [(("letters",), "'char', 'word', 'selfies', 'grid', 'request', 'unigram' or 'bpe'"), (("char", 100), "one id for every character"), (("selfies", 100), "leave vocab_size out"), (("unigram",), "must be given")])
def test_train_tokenizer_refuses(arguments, message):
    with pytest.raises(ValueError, match=message): train_tokenizer(corpus(TEXTS, TEXTS), *arguments)


short_texts = st.lists(st.text("abc ", max_size=12), min_size=1, max_size=8).filter(lambda texts: any(texts))
CHARS = CharTokenizer(list("abc "))


@settings(max_examples=40, deadline=None)
@given(train=short_texts, valid=short_texts, length=st.integers(1, 9))
def test_documents_keep_every_text_and_end(tmp_path_factory, train, valid, length):
    encoded = encode_corpus(corpus(train, valid), CHARS, length, tmp_path_factory.mktemp("cache"))
    for texts, split in ((train, encoded.train), (valid, encoded.valid)):
        rows = split["ids"][:]
        assert rows.dtype == torch.int64 and rows.shape == (sum(len(text) // length + 1 for text in texts), length)
        at = 0
        for text in texts:
            count = len(text) // length + 1
            flat = rows[at:at + count].flatten().tolist()
            at += count
            assert flat[:len(text)] == CHARS.encode(text) and len(flat) > len(text)
            assert set(flat[len(text):]) == {CHARS.eos_token_id}


@settings(max_examples=40, deadline=None)
@given(train=short_texts, length=st.integers(1, 9))
def test_windows_are_the_joined_text_less_a_remainder(tmp_path_factory, train, length):
    cache = tmp_path_factory.mktemp("cache")
    text, one = "".join(train), corpus(train, ["abc"] * 9, documents=False)
    if len(text) < length:
        with pytest.raises(ValueError, match="toy.train is shorter than one canvas"): encode_corpus(one, CHARS, length, cache)
        assert not os.listdir(cache)
    else:
        decoded = CHARS.decode(encode_corpus(one, CHARS, length, cache).train["ids"][:].flatten())
        assert text.startswith(decoded) and len(decoded) == len(text) // length * length


def test_batches_of_texts_do_not_change_the_canvases(tmp_path, monkeypatch):
    one, batches = corpus(TEXTS * 5, TEXTS, documents=False), canvases._text_batches
    tokenizer = CharTokenizer.train(TEXTS)
    whole = encode_corpus(one, tokenizer, 16, tmp_path / "a").train["ids"][:]
    monkeypatch.setattr(canvases, "_text_batches", lambda split: batches(split, characters=50))
    assert torch.equal(whole, encode_corpus(one, tokenizer, 16, tmp_path / "b").train["ids"][:])


def test_texts_are_streamed_in_bounded_batches():
    made = []
    def texts():
        for i in range(5000):
            made.append(i)
            yield {"text": "x" * 100}
    first = next(canvases._text_batches(IterableDataset.from_generator(texts), characters=10_000))
    assert len(first) == 100 and len(made) < 1000


def test_streamed_corpora_encode_to_the_same_file(family, tmp_path):
    one = corpus(TEXTS, TEXTS[:2])
    streamed = SimpleNamespace(name="toy", documents=True, train=one.train.to_iterable_dataset(), valid=one.valid.to_iterable_dataset())
    a = encode_corpus(one, family["unigram"], 32, tmp_path)
    files = set(os.listdir(tmp_path))
    b = encode_corpus(streamed, family["unigram"], 32, tmp_path)
    assert set(os.listdir(tmp_path)) == files and torch.equal(a.train["ids"][:], b.train["ids"][:])
    encode_corpus(streamed, family["bpe"], 32, tmp_path)
    assert len(os.listdir(tmp_path)) == len(files) + 2


def test_the_cache_is_keyed_by_everything_the_rows_depend_on(family, tmp_path):
    variants = [(corpus(TEXTS, TEXTS[:1]), family["char"], 32), (corpus([*TEXTS[:3], TEXTS[3] + "."], TEXTS[:1]), family["char"], 32),
                (corpus(TEXTS, TEXTS[:1]), family["word"], 32), (corpus(TEXTS, TEXTS[:1]), family["char"], 33),
                (corpus(TEXTS, TEXTS[:1], documents=False), family["char"], 32)]
    assert len({tuple(encode_corpus(*variant, tmp_path).train["ids"][:].flatten().tolist()) for variant in variants}) == len(variants)
    moved = [TEXTS[0] + TEXTS[1][:4], TEXTS[1][4:], *TEXTS[2:]]
    assert canvases._split_key(corpus(moved, TEXTS).train, "x", []) != canvases._split_key(corpus(TEXTS, TEXTS).train, "x", [])


def test_a_second_call_encodes_nothing(family, tmp_path, monkeypatch):
    one = corpus(TEXTS, TEXTS[:1])
    before = encode_corpus(one, family["char"], 32, tmp_path).train["ids"][:]
    monkeypatch.setattr(CharTokenizer, "encode_batch", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(before, encode_corpus(one, family["char"], 32, tmp_path).train["ids"][:])


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    one, calls = corpus(TEXTS, TEXTS[:1]), []
    encode = CharTokenizer.encode_batch
    def interrupted(self, texts):
        calls.append(texts)
        if len(calls) > 1: raise KeyboardInterrupt
        return encode(self, texts)
    batches = canvases._text_batches
    monkeypatch.setattr(canvases, "_text_batches", lambda split: batches(split, characters=50))
    monkeypatch.setattr(CharTokenizer, "encode_batch", interrupted)
    with pytest.raises(KeyboardInterrupt): encode_corpus(one, CharTokenizer.train(TEXTS), 32, tmp_path)
    assert len(calls) == 2 and os.listdir(tmp_path) == []


def test_the_cache_directory_comes_from_the_environment(family, tmp_path, monkeypatch):
    monkeypatch.setenv("SHIMMER_CACHE", str(tmp_path / "here"))
    encode_corpus(corpus(TEXTS, TEXTS), family["char"], 32)
    assert len(os.listdir(tmp_path / "here")) == 1, "equal splits are one file"


def test_large_vocabularies_are_stored_whole(tmp_path):
    tokenizer = CharTokenizer([chr(i) for i in range(0x10000, 0x10000 + 70_000)])
    text = chr(0x10000) + chr(0x10000 + 69_999)
    row = encode_corpus(corpus([text], [text]), tokenizer, 3, tmp_path).train[0]["ids"]
    assert row.tolist() == [0, 69_999, tokenizer.eos_token_id]


def test_a_full_disk_names_the_cache(tmp_path, family, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(canvases.os, "replace", full)
    with pytest.raises(OSError, match="toy.train could not be written to .*No space left.*SHIMMER_CACHE"): encode_corpus(corpus(TEXTS, TEXTS), family["char"], 32, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("one, tokenizer, length, message", [
    (corpus([], ["a"]), CHARS, 4, "toy.train holds 0 characters"), (corpus(["a"], ["", ""]), CHARS, 4, "toy.valid holds 0 characters"),
    (corpus(["a"], ["a"]), CHARS, 0, "max_seq_len=0"), (corpus(["a"], ["a"]), CharTokenizer(["a"], eos=False), 4, "eos=True"),
    (corpus(["a"], ["x"]), CHARS, 4, "unknown character 'x'"), (corpus(["a" * 9], ["a"], documents=False), CHARS, 4, "toy.valid is shorter")])
def test_encode_corpus_refuses(tmp_path, one, tokenizer, length, message):
    with pytest.raises(ValueError, match=message) as caught: encode_corpus(one, tokenizer, length, tmp_path)
    assert "\n" not in str(caught.value)
