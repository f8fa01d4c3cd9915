"""Molecules: SELFIES from SMILES, the corpus MOSES, the table of symbols, and MOSES' metrics against their definitions and controls."""
import gzip
import math
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, strategies as st

from shimmer import corpora
from shimmer.corpora import load_corpus
from shimmer.molecules import (PROPERTIES, SelfiesTokenizer, draw_molecules, internal_diversity, known_molecules, molecule_metrics, molecule_properties,
                               molecules, property_histograms, random_selfies, read_molecule, uniqueness, wasserstein)
from shimmer.tokenizers import check_contract, train_tokenizer


def refused(error, match, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        load_corpus(*args, **kwargs)
    assert "\n" not in str(caught.value)


# --- the corpus ------------------------------------------------------------------------------------

TRAIN, TEST = ["CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "CC(N)C(=O)O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O"], ["CC(=O)Nc1ccc(O)cc1", "CN1CCCC1c1cccnc1"]


def moses_folder(folder, train=TRAIN, test=TEST):
    (folder / "moses").mkdir(exist_ok=True)
    for split, smiles in (("train", train), ("test", test)):
        with gzip.open(folder / "moses" / f"{split}.smi.gz", "wt") as file: file.writelines(f"{text}\n" for text in smiles)


def back(rows):
    import selfies
    from rdkit import Chem
    return [Chem.CanonSmiles(selfies.decoder(row["text"])) for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
def test_molecules_of_a_folder(tmp_path, monkeypatch, streaming):
    moses_folder(tmp_path)
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    corpus = load_corpus("moses", streaming=streaming)
    assert corpus.name == "moses" and corpus.documents
    assert back(corpus.train) == TRAIN and back(corpus.valid) == TEST
    assert back(load_corpus("moses", limit=2, streaming=streaming).train) == TRAIN[:2]


def test_a_changed_list_of_molecules_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    for train in (TRAIN, ["CCCO"]):
        moses_folder(tmp_path, train)
        assert back(load_corpus("moses").train) == train


@pytest.mark.parametrize("streaming", [False, True])
def test_molecules_of_the_hub(monkeypatch, streaming):
    monkeypatch.delenv("SHIMMER_DATA", raising=False)
    copy = DatasetDict({split: Dataset.from_dict({"SMILES": smiles, "SPLIT": [split] * len(smiles)}) for split, smiles in (("train", TRAIN), ("test", TEST))})
    if streaming: copy = {split: rows.to_iterable_dataset() for split, rows in copy.items()}
    asked = []
    monkeypatch.setattr(corpora, "_from_hub", lambda name, streaming, revision: asked.append((name, revision)) or copy)
    corpus = load_corpus("moses", limit=4, streaming=streaming)
    assert asked == [corpora.HUB["moses"]] == [("katielink/moses", "main")] and corpus.name == "moses" and corpus.documents
    assert back(corpus.train) == TRAIN[:4] and back(corpus.valid) == TEST
    if streaming: return
    for column, match in (("smiles", "no column 'SMILES'"), ("SMILES", "no split 'test'")):
        copy = DatasetDict({split: Dataset.from_dict({column: TRAIN}) for split in (("train", "test") if column == "smiles" else ("train",))})
        refused(ValueError, match, "moses")


def test_what_can_not_be_spelled_is_left_out_and_counted():
    with pytest.warns(UserWarning, match=r"3 of 5 SMILES of the list .* the first is 'C\*C'"): assert len(list(molecules(["CCO", "C*C", "c1ccc", "", "CCN"]))) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(molecules(TRAIN))) == len(TRAIN) and len(list(molecules(TRAIN, limit=3))) == 3


@given(st.lists(st.text("CNOcno=#()12[]+-H@%/.SFl*é ", min_size=1, max_size=8), max_size=8))
def test_nothing_that_is_called_smiles_stops_the_spelling(smiles):
    import selfies
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in molecules(smiles): selfies.decoder(text)


def test_molecules_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    refused(FileNotFoundError, "train.smi.gz is not there", "moses")
    moses_folder(tmp_path, ["*"])
    with pytest.warns(UserWarning, match="1 of 1 SMILES"): refused(ValueError, "0 training texts", "moses")
    moses_folder(tmp_path)
    whole = (tmp_path / "moses" / "train.smi.gz").read_bytes()
    (tmp_path / "moses" / "train.smi.gz").write_bytes(whole[:-12])
    refused(ValueError, "train.smi.gz can't be read", "moses")
    monkeypatch.delenv("SHIMMER_DATA")
    refused(FileNotFoundError, "SHIMMER_DATA.*moses/train.smi.gz", "moses")
    monkeypatch.setitem(sys.modules, "selfies", None)
    refused(ValueError, r"selfies.*pip install '\.\[molecules\]'", "moses")


# --- the table of symbols --------------------------------------------------------------------------

symbols = st.from_regex(r"\[[^][]{1,5}\]|\.", fullmatch=True)
any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t[].=#C"), max_size=60)


def test_special_words_in_a_text_of_symbols_stay_text():
    tokenizer = SelfiesTokenizer.train(["[C][MASK][=O][EOS][PAD]"])
    special = check_contract(tokenizer, ["[MASK]", "[C][EOS][PAD][MASK]"])
    assert not {*special} & {*tokenizer.encode("[MASK][EOS][PAD]")}


@given(st.lists(symbols, min_size=1, max_size=20))
def test_selfies_are_split_into_their_symbols(pieces):
    text = "".join(pieces)
    tokenizer = SelfiesTokenizer.train([text])
    assert tokenizer.split(text) == pieces and len(tokenizer.encode(text)) == len(pieces) and tokenizer.pieces == sorted(set(pieces))
    check_contract(tokenizer, [text, ""])


@given(any_text)
def test_what_is_no_selfies_is_refused_and_never_shortened(text):
    try: assert "".join(SelfiesTokenizer.split(text)) == text
    except ValueError as error: assert "is no SELFIES" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("text, at", [("CCO", "'CCO'"), ("[C]C[O]", "'C\\[O\\]'"), ("[C][", "'\\['"), ("[C] [O]", "' \\[O\\]'"), ("[]", "'\\[\\]'"), ("[C[N]]", "'\\[C\\[N\\]\\]'")])
def test_a_gap_between_symbols_is_shown(text, at):
    with pytest.raises(ValueError, match=f"is no SELFIES from {at} on"): SelfiesTokenizer.train(["[C][O]"]).encode(text)


def test_an_unknown_symbol_is_named():
    with pytest.raises(ValueError, match=r"unknown symbol '\[Xe\]'"): SelfiesTokenizer.train(["[C][O]"]).encode("[C][Xe]")


def test_lower_modules_know_the_table_and_do_not_import_it(tmp_path):
    toy = SimpleNamespace(documents=True, **{split: Dataset.from_dict({"text": [text]}) for split, text in (("train", "[C][O]"), ("valid", "[N].[C]"))})
    trained = train_tokenizer(toy, "selfies")
    check_contract(trained, ["[C][O]", "[N].[C]"])
    trained.save_pretrained(tmp_path)
    import subprocess
    code = ("import sys, shimmer.corpora, shimmer.tokenizers, shimmer.metrics; assert 'shimmer.molecules' not in sys.modules; "
            f"t = shimmer.tokenizers.load_tokenizer({str(tmp_path)!r}); print(type(t).__module__, t.fingerprint())")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert told == ["shimmer.molecules", trained.fingerprint()]
    with pytest.raises(ValueError, match="one id for every symbol there is"): train_tokenizer(toy, "selfies", 100)


# --- the counts ----------------------------------------------------------------------------------

SMILES = ["CCO", "CC(=O)O", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CC(=O)Nc1ccc(O)cc1", "CN1CCCC1c1cccnc1", "CC(C)Cc1ccc(C(C)C(=O)O)cc1", "NC(=O)c1ccccc1O", "COc1cc(C=O)ccc1O",
          "OCC(O)CO", "NCCc1ccc(O)c(O)c1", "Cc1ccc(C(C)C)c(O)c1", "CC(N)C(=O)O", "O=C(O)c1ccccc1O", "c1ccc2[nH]ccc2c1", "CCOC(=O)c1ccc(N)cc1", "CS(=O)(=O)c1ccccc1", "FC(F)(F)c1ccccc1", "N#Cc1ccccc1", "O=C1CCCCC1", "C1CCOC1", "c1cscn1", "CCN(CC)CC"]
TEXTS = list(molecules(SMILES))
ALPHABET = ["[C]", "[=C]", "[#C]", "[N]", "[=N]", "[#N]", "[O]", "[=O]", "[F]", "[S]", "[=S]", "[P]", "[Cl]", "[Br]", "[NH1]", "[H]", "[N+1]", "[O-1]", "[Branch1]", "[=Branch1]", "[#Branch2]", "[Branch2]", "[Ring1]", "[=Ring1]", "[Ring2]"]
symbol_texts = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=30).map("".join)


def smiles_of(text):
    from rdkit import Chem
    return Chem.MolToSmiles(read_molecule(text).molecule)


@given(symbol_texts)
def test_every_text_of_symbols_is_a_molecule_and_its_canonical_spelling_is_read_whole(text):
    reading = read_molecule(text)
    if reading is None: assert not {*text.replace("]", "] ").split()} - {t for t in ALPHABET if "Branch" in t or "Ring" in t}, "only what holds no atom spells nothing"
    else:
        again, respelled = read_molecule(reading.canonical), read_molecule(reading.used)
        assert again.used == again.canonical == reading.canonical == respelled.canonical and respelled.used == reading.used
        assert reading.used.count("[") <= text.count("[")


@given(st.text("[]C=O.#Ring1 é\n", max_size=20))
def test_what_is_no_selfies_is_no_reason_to_stop(text): read_molecule(text)


def test_data_are_read_whole_and_cut_chains_are_not():
    from rdkit import Chem
    for smiles, text in zip(SMILES, TEXTS):
        assert smiles_of(text) == Chem.CanonSmiles(smiles) and read_molecule(text).used == text
        assert read_molecule(text + "[F][C][C]") is None or read_molecule(text + "[F][C][C]").used != text + "[F][C][C]", "behind [F] nothing is read"
    for nothing in ("", "[Ring1]", "[C][?]", "CCO"): assert read_molecule(nothing) is None


def test_another_spelling_is_the_same_molecule():
    other, = molecules(["OCC"])
    assert other != TEXTS[0] and read_molecule(other).canonical == read_molecule(TEXTS[0]).canonical and read_molecule(other).used == other
    found = molecule_metrics([other] * 4, TEXTS[:1], TEXTS)
    assert found["molecules_novel"] == 0 and found["molecules_unique"] == 1 / 4 and found["molecules_read_whole"] == 1 and found["molecules_canonical"] == 0


def test_known_molecules_are_spelled_again_where_they_must_be():
    from rdkit import Chem
    canonical = known_molecules(TEXTS)
    mirrored = list(molecules([Chem.MolToSmiles(Chem.MolFromSmiles(smiles), rootedAtAtom=Chem.MolFromSmiles(smiles).GetNumAtoms() - 1) for smiles in SMILES]))
    assert mirrored != TEXTS and known_molecules(mirrored) == canonical and len(canonical) == len(SMILES)
    assert known_molecules([*TEXTS, "[Ring1]"]) == canonical and known_molecules([]) == set()


def test_controls_of_the_molecule_metrics():
    train, data = TEXTS[:12], TEXTS[12:]
    chance, copied, held = (molecule_metrics(texts, train, data) for texts in (random_selfies(TEXTS, 60, seed=1), train, data))
    assert chance["molecules_valid"] > 0.9 and held["molecules_valid"] == copied["molecules_valid"] == 1, "validity tells nothing"
    assert copied["molecules_novel"] == 0 and held["molecules_novel"] == 1 and held["molecules_unique"] == 1
    assert chance["molecules_read_whole"] < 0.3 < copied["molecules_read_whole"] == held["molecules_canonical"] == held["molecules_symbols_used"] == 1
    assert chance["molecules_symbols_used"] < 0.9
    for name in PROPERTIES:
        assert held[f"{name}_distance"] == 0 and copied[f"{name}_distance"] == pytest.approx(copied[f"{name}_distance_of_train"]), "the copy is the training set"
    for name in ("valid", "read_whole", "canonical", "novel"):
        low, high = chance[f"molecules_{name}_95_percent"]
        assert low <= chance[f"molecules_{name}"] <= high


def test_uniqueness_is_of_the_first_valid_ones_and_none_where_they_are_too_few():
    found = molecule_metrics(["[Ring1]", *TEXTS[:2] * 500, TEXTS[2]], TEXTS, TEXTS, sample=20)
    assert found["molecules_written"] == 1002 and found["molecules_unique_at_1000"] == 2 / 1000 and found["molecules_unique_at_10000"] is None
    assert found["molecules_unique"] == 3 / 1001 and found["molecules_valid"] == 1001 / 1002
    nothing = molecule_metrics(["[Ring1]"] * 3, TEXTS, TEXTS)
    assert nothing["molecules_valid"] == 0 and nothing["molecules_novel_95_percent"] is None
    for name in ("molecules_novel", "molecules_unique", "molecules_internal_diversity", "molecules_symbols_used", "weight_distance"): assert math.isnan(nothing[name]), name
    with pytest.raises(ValueError, match="0 texts"): molecule_metrics([], TEXTS, TEXTS)


def test_internal_diversity_is_its_definition_and_a_sample_estimates_it():
    from rdkit.Chem import rdFingerprintGenerator
    from rdkit.DataStructs import TanimotoSimilarity
    mols = [read_molecule(text).molecule for text in [*TEXTS, *TEXTS[:5]]]
    prints = [rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024).GetFingerprint(mol) for mol in mols]
    exact = 1 - sum(TanimotoSimilarity(a, b) for a in prints for b in prints) / len(mols) ** 2
    assert internal_diversity(mols) == pytest.approx(exact, abs=1e-6)
    estimates = [internal_diversity(mols, sample=10, seed=seed) for seed in range(300)]
    assert len(set(estimates)) > 100 and abs(sum(estimates) / 300 - exact) < 0.01
    assert internal_diversity(mols[:1] * 7) == pytest.approx(0) and internal_diversity(mols[:1]) == 0 and math.isnan(internal_diversity([]))


samples = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


@given(samples, samples, st.floats(-50, 50), st.integers(2, 4))
def test_wasserstein_is_a_distance_of_distributions(a, b, shift, copies):
    assert wasserstein(a, a) == 0 and wasserstein(a, b) == pytest.approx(wasserstein(b, a), abs=1e-9)
    assert wasserstein(a, [x + shift for x in a]) == pytest.approx(abs(shift), abs=1e-9)
    assert wasserstein(a * copies, b) == pytest.approx(wasserstein(a, b), abs=1e-9), "how often a sample is counted doesn't matter"
    if len(a) == len(b): assert wasserstein(a, b) == pytest.approx(sum(abs(x - y) for x, y in zip(sorted(a), sorted(b))) / len(a), abs=1e-9)
    assert abs(sum(a) / len(a) - sum(b) / len(b)) <= wasserstein(a, b) + 1e-9
    assert math.isnan(wasserstein(a, []))


def test_random_selfies_have_the_symbols_and_lengths_of_the_data():
    drawn = random_selfies(TEXTS, 3000, seed=2)
    assert drawn == random_selfies(TEXTS, 3000, seed=2) != random_selfies(TEXTS, 3000, seed=3)
    split = lambda texts: [text.replace("]", "] ").split() for text in texts]
    share = lambda texts: {symbol: n / sum(map(len, split(texts))) for symbol, n in Counter(sum(split(texts), [])).items()}
    ours, theirs = share(drawn), share(TEXTS)
    assert all(abs(ours[symbol] - theirs[symbol]) < 0.01 for symbol in theirs) and {*map(len, split(drawn))} == {*map(len, split(TEXTS))}


def test_properties_are_known_ones():
    found = molecule_properties([read_molecule(TEXTS[SMILES.index("CC(=O)Oc1ccccc1C(=O)O")]).molecule])
    assert found["weight"] == [pytest.approx(180.16, abs=0.01)] and found["logp"] == [pytest.approx(1.31, abs=0.01)] and found["qed"] == [pytest.approx(0.55, abs=0.01)]
    assert uniqueness("aab") == 2 / 3 and math.isnan(uniqueness([]))


def test_molecules_are_drawn():
    picture = draw_molecules([*TEXTS[:5], "[Ring1]"], [f"no. {i}" for i in range(6)], columns=3)
    assert picture.size == (600, 300) and len(set(picture.convert("L").tobytes())) > 2
    with pytest.raises(ValueError, match="0 texts"): draw_molecules([])
    figure, axes = plt.subplots(1, 3)
    data = molecule_properties([read_molecule(text).molecule for text in TEXTS])
    property_histograms(axes, data, {"the same": data})
    assert [ax.get_xlabel() for ax in axes] == list(PROPERTIES.values()) and len(axes[0].get_legend_handles_labels()[1]) == 2
    plt.close(figure)


@pytest.mark.parametrize("missing", ["rdkit", "selfies"])
def test_molecules_name_the_extra_they_need(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"{missing}.*pip install '\.\[molecules\]'"): molecule_metrics(TEXTS, TEXTS, TEXTS)
