"""The GPU kit. `pack` puts code, encoded stories and a few wheels into one archive; `run`, from within that archive and without a
network, tests the library on a GPU, trains a GPT, a canvas and blocks of 12 million parameters at equal operations, and writes a report.

A run that was killed goes on where it stopped: each phase is kept in the report, each training in its checkpoint."""
import argparse
import datetime
import importlib
import io
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER, MOST_BYTES = "shimmer-gpu", 60_000_000
# What shimmer needs and a CUDA image of PyTorch often lacks; all of them are pure Python
WHEELS = ("accelerate", "datasets", "dill", "multiprocess", "pooch", "platformdirs", "tyro", "docstring-parser", "typeguard", "sortedcontainers", "pytest", "pluggy", "iniconfig", "pygments")
OLDER = ("hypothesis",)  # at the newest version that is pure Python
FILES = ("shimmer", "tests", ".ci/gpu.py", "Makefile", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
FULL = dict(hidden_size=384, num_layers=6, num_heads=6, num_refine_steps=2, batch_size=128, lr=3e-3, muon_lr=0.01, dropout=0.1, scored=256, draws=8, written=32, write_length=128, seed=0)
SMALL = dict(hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=2, batch_size=4, lr=3e-3, muon_lr=0.01, dropout=0.1, scored=4, draws=2, written=2, write_length=8, seed=0)
LENGTHS = (1, 4, 16)  # blocks of these, and of the whole window


# ---- the archive -------------------------------------------------------------------------------------------------------

def encode(corpus: str, vocab_size: int, length: int, limit: int | None, folder: Path) -> None:
    "Write a corpus as windows of one length, what each one of the validation text is in bytes, and the tokenizer."
    import torch
    from safetensors.torch import save_file
    from shimmer.corpora import load_corpus
    from shimmer.tokenizers import train_tokenizer
    text = load_corpus(corpus, limit=limit)
    tokenizer = train_tokenizer(text, "unigram", vocab_size)
    if tokenizer.vocab_size > 2**15: raise ValueError(f"the vocabulary has {tokenizer.vocab_size:,} tokens: at most {2**15:,} fit into 16 bits")
    def windows(split):
        ids = [id for row in split for id in (*tokenizer.encode(row["text"]), tokenizer.eos_token_id)]
        if len(ids) < length: raise ValueError(f"{corpus} has {len(ids)} tokens in a split: a window needs {length}")
        return torch.tensor(ids[: len(ids) // length * length], dtype=torch.int16).view(-1, length)
    train, valid = windows(text.train), windows(text.valid)
    sizes = torch.tensor([len(tokenizer.decode(row.tolist()).encode()) for row in valid])
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"train": train, "valid": valid, "sizes": sizes}, folder / "stories.safetensors", metadata={"corpus": corpus})
    tokenizer.save_pretrained(folder / "tokenizer")


def tracked() -> list[str]:
    "The files of the repository that travel."
    found = subprocess.run(["git", "ls-files", "--", *FILES], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(name for name in found if name)


def pack(archive: Path, data: Path, wheels: Path | None) -> int:
    "Write the archive, the same bytes for the same contents; its size. ValueError where it is too large."
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    contents = [(name, ROOT / name) for name in tracked()]
    contents += [(f"data/{path.relative_to(data)}", path) for path in sorted(data.rglob("*")) if path.is_file()]
    contents += [(f"wheels/{path.name}", path) for path in sorted(wheels.glob("*.whl"))] if wheels else []
    archive.parent.mkdir(parents=True, exist_ok=True)
    aside = archive.with_name(f".{archive.name}")
    def entry(tar, name, held, mode=0o644):
        info = tarfile.TarInfo(f"{FOLDER}/{name}")
        info.size, info.mode = len(held), mode
        tar.addfile(info, io.BytesIO(held))
    with tarfile.open(aside, "w:xz") as tar:
        entry(tar, "COMMIT", f"{commit}\n".encode())
        for name, path in contents: entry(tar, name, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)
    if (size := aside.stat().st_size) > MOST_BYTES:
        aside.unlink()
        raise ValueError(f"the archive would have {size / 1e6:.1f} MB, and it may have {MOST_BYTES / 1e6:.0f}: take fewer stories, as in make gpu-pack LIMIT=20000")
    aside.replace(archive)
    return size


def download_wheels(folder: Path) -> None:
    "Fetch the pure Python wheels that an image of PyTorch may lack, at the versions of constraints.txt."
    for path in folder.glob("*.whl"): path.unlink()
    ask = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--platform", "any", "-d", folder]
    for names in (("-c", ROOT / "constraints.txt", *WHEELS), OLDER):
        done = subprocess.run([*ask, *names], capture_output=True, text=True)
        if done.returncode: raise OSError(f"the wheels can't be had ({done.stderr.strip().splitlines()[-1]}): try again with a network, or leave them out with --no_wheels")


# ---- the run -----------------------------------------------------------------------------------------------------------

def missing() -> list[str]:
    "What shimmer needs and is neither installed nor among the wheels of the archive."
    from importlib.util import find_spec
    names = re.search(r"^requirements = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1].split()
    modules = [{"pillow": "PIL"}.get(name, name) for name in (re.split("[><=]", name)[0] for name in names)]
    return [name for name in modules if find_spec(name) is None]


def use_wheels(folder: Path) -> None:
    "Unpack the wheels of what isn't installed, and make it importable, here and in what this starts."
    from importlib.util import find_spec
    for path in sorted(folder.glob("*.whl")):
        if find_spec(path.name.split("-")[0]) is None:
            target = folder / "unpacked"
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", target, path], check=True)
            importlib.invalidate_caches()
            if str(target) not in sys.path: sys.path.append(str(target))
            os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(target)])


class Run:
    "A run's phases, each written into the report as soon as it is done, and left out where it is in there already."

    def __init__(self, data: Path, out: Path, device: str | None, small: bool, seconds: float):
        import torch
        from safetensors.torch import load_file
        from shimmer.devices import pick_device, resolve_precision
        from shimmer.tokenizers import load_tokenizer
        self.began, self.seconds, self.out = time.perf_counter(), seconds, out
        self.options, self.device = SMALL if small else FULL, pick_device(device)
        self.precision, held = resolve_precision("auto", self.device), load_file(data / "stories.safetensors")
        n, ids = self.options["scored"], held["valid"].long()
        self.train, self.valid, self.other, self.sizes = held["train"].long(), ids[:n], ids[n:][:64], held["sizes"][:n]
        self.tokenizer, self.file = load_tokenizer(data / "tokenizer"), out / "report.json"
        name = torch.cuda.get_device_name() if self.device == "cuda" else platform.processor() or platform.machine()
        commit = (ROOT / "COMMIT").read_text().strip() if (ROOT / "COMMIT").exists() else subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        settings = self.options | dict(windows=len(self.train), length=self.train.shape[1], vocab_size=self.tokenizer.vocab_size, block_lengths=[*LENGTHS, self.train.shape[1]], device=name, precision=self.precision, compiled=self.compiles)
        self.report = json.loads(self.file.read_text()) if self.file.exists() else {"settings": settings, "made": {"date": datetime.date.today().isoformat(), "commit": commit, "torch": torch.__version__}}
        if (before := self.report["settings"]) != settings:
            raise ValueError(f"{self.file} was begun with another {' and '.join(key for key in settings if before.get(key) != settings[key])}: go on with the same, or give another --out")
        if not len(self.other): raise ValueError(f"the validation text has {len(ids)} windows: {n} are scored, and the best weights are chosen on others, so pack more text or shorter windows")

    @property
    def compiles(self) -> bool: return self.device == "cuda"

    def phase(self, name: str, make) -> None:
        "Make a part of the report, unless it is there."
        if name not in self.report:
            self.report[name] = make()
            aside = self.file.with_suffix(".tmp")
            aside.write_text(json.dumps(self.report, indent=1) + "\n")
            aside.replace(self.file)
        print(f"{time.perf_counter() - self.began:5.0f} s  {name}: {json.dumps(self.report[name])[:400]}", flush=True)

    def tests(self) -> dict:
        "The tests that need a GPU; all are skipped where there is none."
        files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py") if "@pytest.mark.cuda" in path.read_text(encoding="utf-8"))
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *files], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))})
        counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.strip().rsplit("\n", 1)[-1])}
        if done.returncode: print(done.stdout[-4000:], done.stderr[-2000:], flush=True)
        return {"passed": 0, "failed": 0, "skipped": 0} | counts

    def model(self, name: str):
        "One of the three, with the weights of the seed."
        import torch
        from shimmer.gpt import GPTConfig, GPTModel
        from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
        o, tok, L = self.options, self.tokenizer, self.train.shape[1]
        torch.manual_seed(o["seed"])
        if name == "GPT": return GPTModel(GPTConfig(tok.vocab_size, o["hidden_size"], o["num_layers"], o["num_heads"], L, o["dropout"], qk_norm=True, bos_token_id=tok.eos_token_id))
        more = dict(begin_token=True, block_lengths=(*LENGTHS, L)) if name == "blocks" else dict(position_embedding=True)
        return LatentCanvasModel(LatentCanvasConfig(tok.vocab_size, o["hidden_size"], o["num_layers"], o["num_heads"], o["num_refine_steps"], L, tok.mask_token_id, qk_norm=True, dropout=o["dropout"], **more))

    def objective(self, name: str):
        from shimmer.objectives import MaskedLM, NextToken
        return NextToken() if name == "GPT" else MaskedLM((1e-6, 1.0))

    def fit(self, name: str, updates: int, folder: str | None):
        "Train one of the three, or go on with it."
        from shimmer.schedules import Stage, TrainConfig
        from shimmer.training import fit
        o, share = self.options, updates * self.options["batch_size"] / len(self.train)
        epochs = max(1, math.ceil(share))
        config = TrainConfig(batch_size=o["batch_size"], device=self.device, lr=o["lr"], optimizer="muon", muon_lr=o["muon_lr"], warmup_steps=min(100, updates // 5), precision=self.precision, compile=self.compiles, seed=o["seed"], progress=False, keep_best=folder is not None,
                             log_every=10, validate_every=max(1, updates // 8) if folder else 10**9, validation_texts=64, validation_draws=2, checkpoint_every=max(1, updates // 4), checkpoint_dir=folder and str(self.out / folder))
        return fit(self.model(name), self.train, (Stage(name, self.objective(name), epochs, min(1.0, share / epochs)),), config, resume=folder is not None, valid=self.other)

    def ceiling(self) -> dict:
        "The fastest square matrix product in the precision of training: operations a second."
        import torch
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]
        def rate(n):
            a, b = torch.randn(2, n, n, device=self.device).to(dtype)
            taken = []
            for _ in range(8):
                self.wait()
                start = time.perf_counter()
                for _ in range(4): a @ b
                self.wait()
                taken.append((time.perf_counter() - start) / 4)
            return 2 * n**3 / statistics.median(taken[2:])
        rates = {n: rate(n) for n in ((1024, 4096, 8192) if self.device == "cuda" else (256, 1024))}
        return {"teraflop a second": max(rates.values()) / 1e12, "size": max(rates, key=rates.get)}

    def wait(self) -> None:
        import torch
        if self.device == "cuda": torch.cuda.synchronize()

    def speed(self, name: str) -> dict:
        "What an update costs, in operations and seconds, and the share of the ceiling that is."
        from shimmer.training import flops_per_update
        o, L, steps = self.options, self.train.shape[1], 60 if self.device == "cuda" else 30
        flops = flops_per_update(self.model(name), self.objective(name), o["batch_size"], L)
        rows = [row for row in self.fit(name, steps, None).log if "loss" in row]
        taken = statistics.median(o["batch_size"] * L / row["tokens_per_second"] for row in rows[1:])  # the first holds the compiler
        return {"parameters": sum(p.numel() for p in self.model(name).parameters()), "gigaflop": flops / 1e9, "seconds an update": taken, "tokens a second": o["batch_size"] * L / taken, "share of the ceiling": flops / taken / 1e12 / self.report["ceiling"]["teraflop a second"]}

    def plan(self) -> dict:
        "As many updates of each as cost the same number of operations and fill the time that is left."
        spent, cost = time.perf_counter() - self.began, {name: self.report[f"speed of {name}"] for name in ("GPT", "canvas", "blocks")}
        left = max(0.4 * self.seconds, self.seconds - spent - 90)  # scoring and writing want a minute and a half
        budget = 0.9 * left / sum(row["seconds an update"] / row["gigaflop"] for row in cost.values())  # gigaflop for each
        return {"gigaflop": budget, "updates": {name: max(2, int(budget / row["gigaflop"])) for name, row in cost.items()}}

    def learn(self, name: str) -> dict:
        "Train one of the three and score it."
        from shimmer.devices import autocast
        from shimmer.likelihood import bootstrap_interval, left_to_right_nll, nelbo
        result, o, scores = self.fit(name, self.report["plan"]["updates"][name], name), self.options, []
        model, ids = result.model, self.valid.to(self.device)
        readings = {"exact": left_to_right_nll} if name == "GPT" else {"bound": lambda m, ids: nelbo(m, ids, o["draws"])}
        lengths = (*LENGTHS, ids.shape[1]) if name == "blocks" else (None,)
        for b in lengths:
            for measure, ask in readings.items():
                with autocast(self.device, self.precision): nats = ask(model if b is None else model.at_block_length(b), ids)
                value, low, high = (bits / math.log(2) for bits in bootstrap_interval(nats, self.sizes))
                scores.append({"block length": b, "measure": "exact" if b == 1 else measure, "bits per byte": value, "low": low, "high": high})
        curve = [[row["step"], row["valid_nats_per_token"]] for row in result.log if "valid_nats_per_token" in row]
        return {"updates": result.steps, "seconds": result.seconds, "scores": scores, "curve": curve}

    def write(self) -> list[dict]:
        "Tokens a second of each way to write, one text at a time and many."
        from shimmer.appending import append_tokens
        from shimmer.blocks import generate_blocks, speculate_blocks
        from shimmer.gpt import GPTModel
        from shimmer.lira import LatentCanvasModel
        from shimmer.policies import EntropyBound, TopK
        from shimmer.samplers import make_canvas, refine
        n, rows = self.options["write_length"], []
        gpt, canvas, blocks = (kind.from_pretrained(self.out / name).to(self.device) for kind, name in ((GPTModel, "GPT"), (LatentCanvasModel, "canvas"), (LatentCanvasModel, "blocks")))
        calls = lambda run: run.num_calls.double().mean().item()
        ways = {"GPT, cached": lambda prompts: (append_tokens(gpt, prompts, n, temperature=1.0), float(n))[1],
                "canvas, entropy bound 0.1": lambda prompts: calls(refine(canvas, make_canvas(canvas, prompts, n), EntropyBound(0.1), n, record=False)),
                "blocks of 16, entropy bound 0.1": lambda prompts: calls(generate_blocks(blocks, prompts, EntropyBound(0.1), 16, n, temperature=1.0, record=False)),
                "blocks of 4, entropy bound 0.1": lambda prompts: calls(generate_blocks(blocks, prompts, EntropyBound(0.1), 4, n, temperature=1.0, record=False)),
                "blocks of 1": lambda prompts: calls(generate_blocks(blocks, prompts, TopK(k=1), 1, n, temperature=1.0, record=False)),
                "blocks of 1, speculation of 4": lambda prompts: calls(speculate_blocks(blocks, prompts, 4, n, temperature=1.0))}
        for way, write in ways.items():
            for batch in (1, self.options["written"]):
                write([[]] * batch)  # warm
                self.wait()
                start = time.perf_counter()
                made = write([[]] * batch)
                self.wait()
                rows.append({"way": way, "batch": batch, "calls": made, "tokens a second": batch * n / (time.perf_counter() - start)})
        return rows

    def all(self) -> None:
        "Every phase in order."
        self.phase("tests", self.tests)
        self.phase("ceiling", self.ceiling)
        for name in ("GPT", "canvas", "blocks"): self.phase(f"speed of {name}", lambda: self.speed(name))
        self.phase("plan", self.plan)
        for name in ("GPT", "canvas", "blocks"): self.phase(name, lambda: self.learn(name))
        self.phase("writing", self.write)
        print(f"{time.perf_counter() - self.began:.0f} s in all; the report is {self.file}: copy it to nbs/evals/results/gpu.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    packing, running = verbs.add_parser("pack", help="make the archive"), verbs.add_parser("run", help="test, train, measure")
    packing.add_argument("--archive", type=Path, default=ROOT / "reports/gpu/shimmer-gpu.tar.xz")
    packing.add_argument("--corpus", default="tinystories")
    packing.add_argument("--limit", type=int, help="stories kept; all where left out")
    packing.add_argument("--vocab_size", type=int, default=2000)
    packing.add_argument("--length", type=int, default=256, help="tokens of a window")
    packing.add_argument("--no_wheels", action="store_true", help="leave out what an image of PyTorch may lack")
    running.add_argument("--data", type=Path, default=ROOT / "data")
    running.add_argument("--out", type=Path, default=ROOT / "reports/gpu")
    running.add_argument("--device", help="cuda, cpu or mps; the best there is where left out")
    running.add_argument("--seconds", type=float, default=500.0, help="for everything")
    running.add_argument("--small", action="store_true", help="in miniature, to try the kit without a GPU")
    given = parser.parse_args()
    try:
        if given.verb == "pack":
            folder = given.archive.parent / "pack"
            encode(given.corpus, given.vocab_size, given.length, given.limit, folder / "data")
            (wheels := folder / "wheels").mkdir(parents=True, exist_ok=True)
            if not given.no_wheels: download_wheels(wheels)
            size = pack(given.archive, folder / "data", None if given.no_wheels else wheels)
            print(f"wrote {given.archive}, {size / 1e6:.1f} MB. On the machine with the GPU: tar xf {given.archive.name} && make -C {FOLDER} gpu")
            return 0
        sys.path.insert(0, str(ROOT))
        os.environ["PYTHONPATH"] = str(ROOT)
        if (ROOT / "wheels").is_dir(): use_wheels(ROOT / "wheels")
        if absent := missing(): raise ValueError(f"{', '.join(absent)} cannot be imported and the archive brings no wheel: take an image that has it, or install it before")
        if not (given.data / "stories.safetensors").exists(): raise ValueError(f"{given.data} has no stories.safetensors: run this from an archive that make gpu-pack has made")
        given.out.mkdir(parents=True, exist_ok=True)
        Run(given.data, given.out, given.device, given.small, given.seconds).all()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__": sys.exit(main())
