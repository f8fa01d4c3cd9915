"""Build the wheel, and use it where nothing is installed but what it asks for; --here uses this environment, with the rest hidden.

A new environment downloads what the library needs, in the versions of constraints.txt. With --here nothing is downloaded: the
wheel is unpacked into a folder, and whatever its requirements don't bring can't be imported."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from book import ROOT

USE = """
import importlib, pkgutil, sys, pathlib, shimmer
assert pathlib.Path(shimmer.__file__).is_relative_to(sys.argv[1]), f"{shimmer.__file__} is not the wheel's"
names = [m.name for m in pkgutil.iter_modules(shimmer.__path__) if not m.name.startswith("_")]
for name in names: importlib.import_module(f"shimmer.{name}")
import shimmer.cli
try: shimmer.cli.main(["--help"])
except SystemExit as stop: assert not stop.code
print("imported:", " ".join(sorted(names)))
"""
HIDE = """
import sys
from importlib.metadata import distributions, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
def needed(name, extras=("",)):
    for line in requires(name) or ():
        asked = Requirement(line)
        if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in extras):
            key = (canonicalize_name(asked.name), tuple(sorted(asked.extras)))
            if key not in seen and any(canonicalize_name(d.name) == key[0] for d in distributions()):
                seen.add(key); needed(asked.name, ("", *asked.extras))
seen = set()
needed("shimmer-lm")
allowed = {name for name, _ in seen} | {"shimmer-lm"}
hidden = {module for module, of in packages_distributions().items() if not allowed & {canonicalize_name(d) for d in of}}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden: raise ModuleNotFoundError(f"No module named {name!r}: the wheel does not ask for what brings it", name=name)
for name in [n for n in sys.modules if n.split(".")[0] in hidden]: del sys.modules[name]
sys.meta_path.insert(0, Hide())
"""


def build(folder: Path) -> Path:
    "The wheel of this tree, in a folder; built from a copy, so that nothing an earlier build left gets into it."
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "settings.ini", "MANIFEST.in", "README.md", "LICENSE"): shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "shimmer", source / "shimmer", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, source], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


def stray(wheel: Path) -> list[str]:
    "Files in the wheel that are neither the package's nor the wheel's own."
    return [name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith(("shimmer/", "shimmer_lm-"))]


def here(wheel: Path, folder: Path) -> None:
    "Use the unpacked wheel in this environment, with everything hidden that it does not ask for."
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    subprocess.run([sys.executable, "-c", HIDE + USE, site], check=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(site)})


def bare(wheel: Path, folder: Path) -> None:
    "Install the wheel in a new environment and use it there."
    venv.create(folder / "env", with_pip=True)
    python, command = folder / "env/bin/python", folder / "env/bin/shimmer"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt", wheel], check=True, cwd=folder, env=env)
    subprocess.run([python, "-c", USE, folder / "env"], check=True, cwd=folder, env=env)
    subprocess.run([command, "--help"], check=True, cwd=folder, env=env, stdout=subprocess.DEVNULL)


def main(use=bare) -> int:
    "Return 1 where the wheel holds what it must not."
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp).resolve()
        wheel = build(folder)
        if strays := stray(wheel):
            print(f"{wheel.name} holds {', '.join(strays)}: only the package belongs in it", file=sys.stderr)
            return 1
        use(wheel, folder)
        print(f"{wheel.name} is whole: {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="download nothing")
    sys.exit(main(here if parser.parse_args().here else bare))
