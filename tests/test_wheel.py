"""The wheel holds the package and nothing else, and works with what it asks for and nothing else."""
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import check_wheel  # noqa: E402


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return check_wheel.build(tmp_path_factory.mktemp("wheel"))


def test_it_holds_the_package_alone(wheel):
    assert check_wheel.stray(wheel) == []
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"shimmer/{p.name}" for p in (ROOT / "shimmer").glob("*.py")} <= set(names)
    assert not any("__pycache__" in name or name.endswith((".ipynb", ".pt", ".pkl")) for name in names)


def test_it_works_with_what_it_asks_for(wheel, tmp_path, capfd):
    check_wheel.here(wheel, tmp_path)
    assert f"imported: {' '.join(sorted(p.stem for p in (ROOT / 'shimmer').glob('[!_]*.py')))}" in capfd.readouterr().out


def test_what_it_does_not_ask_for_is_hidden(wheel, tmp_path):
    altered = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(altered, "w") as new:
        for name in old.namelist(): new.writestr(name, old.read(name) + (b"\nimport nbdev\n" if name == "shimmer/layers.py" else b""))
    with pytest.raises(subprocess.CalledProcessError): check_wheel.here(altered, tmp_path)


def test_a_stray_file_is_seen(wheel, tmp_path):
    altered = tmp_path / wheel.name
    altered.write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(altered, "a") as file: file.writestr("tests/test_layers.py", "")
    assert check_wheel.stray(altered) == ["tests/test_layers.py"]
