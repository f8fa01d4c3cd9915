"""Corpora: every source, every form a file comes in, and every way it can fail."""
import bz2
import codecs
import datetime
import gzip
import hashlib
import json
import lzma
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings, strategies as st

from shimmer import corpora
from shimmer.corpora import load_corpus
from shimmer.tales import Tales

def test_tales_load_and_repeat():
    corpus = load_corpus("tales", limit=30)
    assert corpus.documents and len(corpus.train) == 30
    assert corpus.train["text"][:3] == load_corpus("tales", limit=30).train["text"][:3] == Tales().sample(3, seed=0)
    assert next(iter(load_corpus("tales", limit=5, streaming=True).train))["text"] == corpus.train[0]["text"]


def test_documents_of_a_text_file(tmp_path):
    stories = [f"Story {i}.\n\n\"It ends.\"" for i in range(60)]
    (tmp_path / "own.txt").write_text("\n<|endoftext|>\n".join(stories))
    corpus = load_corpus(tmp_path / "own.txt")
    assert corpus.documents and list(corpus.valid["text"]) == stories[19::20]
    assert sorted([*corpus.train["text"], *corpus.valid["text"]]) == sorted(stories)
    assert [row["text"] for row in load_corpus(tmp_path / "own.txt", streaming=True).train] == list(corpus.train["text"])
    assert len(load_corpus(tmp_path / "own.txt", limit=7).train) == 7


@settings(max_examples=40)
@given(st.text(alphabet="ab\n\r é", min_size=20, max_size=300))
def test_one_long_text_loses_nothing(text):
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.txt"
        path.write_text(text, newline="", encoding="utf-8")
        corpus = load_corpus(path, streaming=True)
        train, valid = ("".join(row["text"] for row in rows) for rows in (corpus.train, corpus.valid))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        assert train + valid == text and len(train) == int(0.9 * len(text))


def test_pieces_of_a_longer_text(tmp_path):
    text = "".join(f"line {i}\n" for i in range(60_000))
    (tmp_path / "long.txt").write_text(text)
    corpus = load_corpus(tmp_path / "long.txt")
    assert len(corpus.train) > 1 and "".join([*corpus.train["text"], *corpus.valid["text"]]) == text


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_a_table(tmp_path, suffix):
    path, texts = tmp_path / f"rows{suffix}", [f"text {i}" for i in range(40)]
    table = Dataset.from_dict({"text": texts, "other": list(range(40))})
    table.to_parquet(path) if suffix == ".parquet" else table.to_json(path)
    corpus = load_corpus(path)
    assert list(corpus.valid["text"]) == texts[19::20] and corpus.train.column_names == ["text"]


def test_shimmer_data_comes_first(tmp_path, monkeypatch):
    (tmp_path / "tinystories").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "tinystories" / f"{split}.txt").write_text(f"One {split}.\n<|endoftext|>\nTwo.\n<|endoftext|>\n")
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    with pytest.warns(UserWarning, match="1 of the 2 validation texts of tinystories"): corpus = load_corpus("tinystories")
    assert corpus.name == "tinystories"
    assert list(corpus.train["text"]) == ["One train.", "Two."] and list(corpus.valid["text"]) == ["One valid.", "Two."]
    with pytest.raises(FileNotFoundError, match="SHIMMER_DATA"):
        load_corpus("tinyshakespeare")


# files as they come

STORIES = [f"Story {i}.\n\nIt ends." for i in range(40)]


def both(path, **options):
    "The texts of a corpus, the same whether it streams or not: training and validation."
    corpus = load_corpus(path, **options)
    kept = [list(rows["text"]) for rows in (corpus.train, corpus.valid)]
    streamed = load_corpus(path, streaming=True, **options)
    assert kept == [[row["text"] for row in rows] for rows in (streamed.train, streamed.valid)]
    return corpus, *kept


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_and_line_ends_of_any_system(tmp_path, encoding, end):
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    content = "".join(f"<|endoftext|>\n{story} \u00e9\U0001f600\n" for story in STORIES).replace("\n", end)
    (tmp_path / "own.txt").write_bytes(mark + content.encode(encoding))
    corpus, train, valid = both(tmp_path / "own.txt")
    assert corpus.documents and valid == [f"{story} \u00e9\U0001f600" for story in STORIES[19::20]]
    assert len(train) == 38 and train[0].startswith("Story 0.\n\nIt")
    (tmp_path / "own.jsonl").write_bytes(mark + (end.join(json.dumps({"text": story.replace("\n", end)}) for story in STORIES) + end).encode(encoding))
    assert both(tmp_path / "own.jsonl")[2] == STORIES[19::20]


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
def test_what_is_no_text_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes("Some text.\n".encode("utf-16-le") * 50)
    for streaming in (False, True): refused(ValueError, "zero bytes.*UTF-16", tmp_path / name, streaming=streaming)


@pytest.mark.parametrize("separator", ["<|endoftext|>", "<|endoftext|>\n", "\n<|endoftext|>", "\n<|endoftext|>\n", "\n  <|endoftext|> \n\n", "\n \n<|endoftext|>\n<|endoftext|>\n"])
@pytest.mark.parametrize("chunk", [1 << 20, 5])
def test_documents_are_split_wherever_the_separator_stands(tmp_path, monkeypatch, separator, chunk):
    monkeypatch.setattr(corpora, "_chunks", lambda file: iter(lambda: file.read(chunk), ""))
    (tmp_path / "own.txt").write_text(separator.join(STORIES) + separator)
    corpus, train, valid = both(tmp_path / "own.txt", limit=chunk)
    assert corpus.documents and valid == STORIES[19::20] and train == [*STORIES[:19], *STORIES[20:39]][:chunk]


def test_a_late_separator_still_separates(tmp_path):
    (tmp_path / "own.txt").write_text("line\n" * 300_000 + "<|endoftext|>\nThe end.\n")
    corpus = load_corpus(tmp_path / "own.txt")
    assert corpus.documents and list(corpus.valid["text"]) == ["The end."]


@pytest.mark.parametrize("count", [2, 3, 19, 20, 21])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "hub"])
def test_one_of_several_texts_validates(tmp_path, monkeypatch, count, kind):
    path, texts = tmp_path / f"own.{kind}", [f"Story {i}." for i in range(count)]
    table = Dataset.from_dict({"text": texts})
    if kind == "txt": path.write_text("\n<|endoftext|>\n".join(texts))
    elif kind == "jsonl": table.to_json(path)
    elif kind == "parquet": table.to_parquet(path)
    else: path = "somebody/something"
    monkeypatch.setattr(corpora, "_from_hub", lambda name, streaming, revision: {"train": table.to_iterable_dataset() if streaming else table})
    _, train, valid = both(path)
    assert valid == [texts[min(count, 20) - 1]] and sorted(train + valid) == sorted(texts)
    assert both(path, limit=100)[1:] == (train, valid)  # a limit beyond the end is none


@pytest.mark.parametrize("suffix, pack", [(".gz", gzip.compress), (".BZ2", bz2.compress), (".xz", lzma.compress),
                                          (".Zst", None)])
def test_compressed_files_and_suffixes_of_any_case(tmp_path, suffix, pack):
    if suffix == ".Zst":
        def pack(data):
            with pa.output_stream(tmp_path / "packed.zst", compression="zstd") as file: file.write(data)
            return (tmp_path / "packed.zst").read_bytes()
    (tmp_path / f"own.JSONL{suffix}").write_bytes(pack("\n".join(json.dumps({"text": story}) for story in STORIES).encode()))
    (tmp_path / f"long.Txt{suffix}").write_bytes(pack(("\ufeff" + "\r\n".join(STORIES)).encode()))
    corpus, _, valid = both(tmp_path / f"own.JSONL{suffix}")
    assert corpus.name == "own" and valid == STORIES[19::20]
    corpus, train, valid = both(tmp_path / f"long.Txt{suffix}")
    assert corpus.name == "long" and not corpus.documents and "".join(train + valid) == "\n".join(STORIES)
    for name in (f"own.JSONL{suffix}", f"long.Txt{suffix}"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
        for streaming in (False, True): refused(ValueError, "can't be read.*damaged or cut short", tmp_path / name, streaming=streaming)
        (tmp_path / name).write_bytes(b'{"text": "not packed"}\n' * 40)
        refused(ValueError, "can't be read.*damaged or cut short", tmp_path / name)
    (tmp_path / f"own.parquet{suffix}").write_bytes(b"x")
    refused(ValueError, "rename or convert", tmp_path / f"own.parquet{suffix}")


def test_a_column_of_another_name(tmp_path, monkeypatch):
    table = Dataset.from_dict({"content": STORIES, "id": list(range(40))})
    table.to_json(tmp_path / "own.jsonl")
    table.to_parquet(tmp_path / "own.parquet")
    monkeypatch.setattr(corpora, "_from_hub", lambda name, streaming, revision: {"train": table.to_iterable_dataset() if streaming else table})
    for source in (tmp_path / "own.jsonl", tmp_path / "own.parquet", "somebody/something"):
        refused(ValueError, "the columns content, id and no column 'text'.*text_column.*--text_column", source)
        assert both(source, text_column="content")[2] == STORIES[19::20]
        if source != tmp_path / "own.jsonl": refused(ValueError, "'id' .* holds .*int64.* should hold strings", source, text_column="id")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_text_that_arrow_has(tmp_path, monkeypatch, kind):
    texts = pa.array(STORIES).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(STORIES).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "own.parquet")
    assert both(tmp_path / "own.parquet")[2] == STORIES[19::20]
    if pa.types.is_dictionary(kind): return
    monkeypatch.setattr(corpora, "_from_hub", lambda name, streaming, revision: datasets.load_dataset("parquet", data_files=str(tmp_path / "own.parquet"), streaming=streaming))
    assert both("somebody/something")[2] == STORIES[19::20]


def test_columns_that_nobody_reads_do_not_disturb(tmp_path):
    changing = [1, "one", None, [1, "two"], {"a": {}}, 2.5, True, {"b": [None]}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": story, "other": changing[i % 8]}) + "\n" for i, story in enumerate(STORIES)))
    durations = pa.array([datetime.timedelta(seconds=i) for i in range(40)])
    others = {"time": durations, "map": pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())), "uuid": pa.array([bytes(16)] * 40, pa.uuid())}
    unknown = json.dumps({"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "time": {"_type": "Nobodys"}}}})
    pq.write_table(pa.table({"text": STORIES, **others}).replace_schema_metadata({"huggingface": unknown}), tmp_path / "own.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(STORIES), durations, durations], ["text", "twice", "twice"]), tmp_path / "twice.parquet")
    for name in ("own.jsonl", "own.parquet", "twice.parquet"): assert both(tmp_path / name)[2] == STORIES[19::20]


@pytest.mark.parametrize("values, match", [
    ([["a"]] * 40, "'text' of .* holds list<.*string> and should hold strings"), ([b"a"] * 40, "holds binary"),
    ([None] * 40, "holds null"), (["a"] * 30 + [None] * 10, "row 31 of .* holds null"), ([1.5] * 40, "holds double")])
def test_columns_of_a_parquet_file_that_hold_no_texts(tmp_path, values, match):
    pq.write_table(pa.table({"text": values}), tmp_path / "own.parquet", row_group_size=7)
    refused(ValueError, match, tmp_path / "own.parquet")
    if "row 31" not in match: refused(ValueError, match, tmp_path / "own.parquet", streaming=True)


def test_a_list_of_objects_is_read(tmp_path):
    for name in ("own.json", "own.jsonl"):
        (tmp_path / name).write_text(json.dumps([{"text": story} for story in STORIES], indent=2))
        assert both(tmp_path / name)[2] == STORIES[19::20]


def test_a_text_on_both_sides_of_the_split_is_told(tmp_path, monkeypatch):
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": STORIES[max(2, i)]}) + "\n" for i in range(40)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(tmp_path / "own.jsonl")
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": STORIES[i % 25]}) + "\n" for i in range(40)))
    with pytest.warns(UserWarning, match=r"1 of the 2 validation texts of own \(50.0%\) are training texts too.*take the copies out"):
        load_corpus(tmp_path / "own.jsonl")
    table = Dataset.from_dict({"text": ["same"] * 3 + STORIES})
    monkeypatch.setattr(corpora, "_from_hub", lambda name, streaming, revision: {"train": table.select(range(2, 40)), "test": table.select([0, 41, 42])})
    with pytest.warns(UserWarning, match=r"1 of the 3 validation texts of something \(33.3%\)"): load_corpus("somebody/something")


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip), min_size=2, max_size=45))
def test_any_texts_come_back_from_a_table_but_for_their_line_ends(texts):
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        for ascii in (True, False):
            path = Path(folder) / "own.jsonl"
            path.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=ascii) for text in texts), encoding="utf-8")
            corpus = load_corpus(path, streaming=True)
            back = [row["text"] for rows in (corpus.train, corpus.valid) for row in rows]
            assert sorted(back) == sorted(text.replace("\r\n", "\n").replace("\r", "\n") for text in texts)


def refused(error, match, *args, **kwargs):
    with pytest.raises(error, match=match) as caught:
        load_corpus(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("SHIMMER_DATA", raising=False)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "alone"}) + "\n")
    (tmp_path / "untitled.jsonl").write_text(json.dumps({"story": "x"}) + "\n")
    (tmp_path / "x.docx").write_text("x")
    refused(FileNotFoundError, "is no file", tmp_path / "absent.txt")
    refused(FileNotFoundError, "SHIMMER_DATA", "tinystories")
    refused(FileNotFoundError, "SHIMMER_DATA", "tinyshakespeare")
    refused(FileNotFoundError, "could not be downloaded", "nobody/nothing")
    refused(ValueError, "0 training texts", tmp_path / "empty.txt")
    refused(ValueError, "0 validation texts", tmp_path / "one.jsonl")
    refused(ValueError, "no column 'text'", tmp_path / "untitled.jsonl")
    refused(ValueError, "rename or convert", tmp_path / "x.docx")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 50)
    refused(ValueError, "is not UTF-8.*0xe9", tmp_path / "latin.txt")
    (tmp_path / "late.txt").write_bytes(b"A text.\n<|endoftext|>\n" * 20_000 + "caf\xe9".encode("latin-1"))
    refused(ValueError, "is not UTF-8.*0xe9", tmp_path / "late.txt")
    refused(ValueError, "limit is 0", "tales", limit=0)


@pytest.mark.parametrize("name, content, match", [
    ("empty.jsonl", b"", "is empty"),
    ("broken.jsonl", b'{"text": "a"}\n{"text": bro', "line 2 .* not valid JSON.*one object a line"),
    ("damaged.parquet", b"no table", "can't be read"),
    ("numbers.jsonl", b'{"text": "a"}\n' * 30 + b'{"text": 1}\n{"text": []}\n', "line 31 .* holds a number in 'text' and should hold a string"),
    ("lists.jsonl", b'\n{"text": ["a"]}\n' * 40, "line 2 .* holds a list"),
    ("members.jsonl", b'{"text": "a"}\n["a"]\n', "line 2 .* holds a list and should hold an object"),
    ("array.json", b'[{"text": "a"},\n{"text": "b"},\n{"text": true}]', "record 3 .* holds true or false"),
    ("broken.json", b'[{"text": "a"},\n{"text": "b"}\n{"text": "c"}]', "line 3 .* not valid JSON"),
    ("holes.jsonl", b'{"text": "a"}\n{"text": null}\n' * 40, "line 2 .* holds null"),
    ("comma.jsonl", b'{"text": "a"}\n{"text": "b"},\n{"text": "c"},\n', "line 2 .* take the comma"),
    ("half.jsonl", rb'{"text": "a"} ' + b"\n" + rb'{"text": "\ud83d"}', "line 2 .* surrogate"),
    ("late.jsonl", b'{"text": "a"}\n{"story": "b"}\n', "line 2 .* has the columns story and no column 'text'"),
])
def test_tables_that_hold_no_texts(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(ValueError, match, tmp_path / name)


@pytest.mark.parametrize("name", ["a b/c d", "./nosuch", "a/b/c"])
def test_names_that_no_dataset_can_have(name):
    refused(FileNotFoundError, "could not be downloaded", name)


def test_a_full_disk_names_the_folder(tmp_path, monkeypatch):
    def full(*args, **options): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Dataset, "from_generator", full)
    refused(OSError, "tales could not be read, or not copied to .*No space left.*HF_DATASETS_CACHE", "tales", limit=7)


@pytest.fixture
def served(tmp_path):
    "A folder and the address it is served at, on this machine."
    folder = tmp_path / "served"
    folder.mkdir()
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_download_is_compared_with_its_checksum_and_kept(tmp_path, monkeypatch, served):
    folder, address = served
    monkeypatch.delenv("SHIMMER_DATA", raising=False)
    monkeypatch.setenv("SHIMMER_CACHE", str(tmp_path / "cache"))
    right, wrong = "To be, or not to be.\n" * 50, "To be, or so.\n" * 50
    monkeypatch.setattr(corpora, "SHAKESPEARE", (f"{address}/input.txt", hashlib.sha256(right.encode()).hexdigest()))
    (folder / "input.txt").write_text(wrong)
    refused(FileNotFoundError, "does not match the known hash", "tinyshakespeare")
    assert not list((tmp_path / "cache").iterdir())
    for content in (right, None):
        if content: (folder / "input.txt").write_text(content)
        else: (folder / "input.txt").unlink()
        corpus = load_corpus("tinyshakespeare")
        assert corpus.name == "tinyshakespeare" and not corpus.documents and "".join(corpus.train["text"]) == right[:len(right) * 9 // 10]
    kept, = (tmp_path / "cache").iterdir()
    kept.write_text(wrong)
    refused(FileNotFoundError, "tinyshakespeare.*SHIMMER_DATA", "tinyshakespeare")


def test_the_checksum_is_that_of_the_file_everybody_uses():
    import os
    from pathlib import Path
    file = Path(os.environ.get("SHIMMER_DATA") or "") / corpora.LOCAL["tinyshakespeare"][0]
    if not file.is_file(): pytest.skip("Tiny Shakespeare is not here")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == corpora.SHAKESPEARE[1]


def test_data_of_the_hub_is_pinned(monkeypatch):
    monkeypatch.delenv("SHIMMER_DATA", raising=False)
    asked, texts = [], DatasetDict({split: Dataset.from_dict({"text": [split], "SMILES": ["CCO"]}) for split in ("train", "test")})
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=lambda *args, **options: None))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming, revision: asked.append((name, revision)) or texts)
    load_corpus("tinystories")
    load_corpus("tinystories", revision="abc")
    load_corpus("somebody/something")
    load_corpus("somebody/something", revision="v2")
    assert asked == [("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"), ("roneneldan/TinyStories", "abc"), ("somebody/something", None), ("somebody/something", "v2")]
    monkeypatch.setitem(corpora.HUB, "tinystories", ("roneneldan/TinyStories", "set"))
    load_corpus("tinystories")
    assert asked[-1][1] == "set"


def test_a_hub_that_does_not_answer_is_asked_once_and_its_copies_are_used(monkeypatch):
    asked = []
    class Session:
        def head(self, url, timeout):
            asked.append(url)
            raise ConnectionError("no route to host")
    offline = lambda: (huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
    refused(FileNotFoundError, "no route to host", "nobody/nothing")
    assert len(asked) == 1 and offline() == (False, False)
    copy = DatasetDict({split: Dataset.from_dict({"text": [f"kept for {split}"]}) for split in ("train", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, streaming, revision: copy if offline() == (True, True) else None)
    assert load_corpus("somebody/something").train["text"][0] == "kept for train" and offline() == (False, False)
    copy.pop("train")
    refused(ValueError, "the splits test and no split 'train'", "somebody/something")
