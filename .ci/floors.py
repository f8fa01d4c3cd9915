"""Print the library's requirements at their floors, as settings.ini names them: constraints for pip, one a line."""
import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def floors() -> list[str]:
    "Each requirement at its lowest version; ValueError for one that names none."
    parser = ConfigParser()
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    named = parser["DEFAULT"]["requirements"].split()
    if without := [name for name in named if not re.fullmatch(r"[\w.-]+>=\d+\.\d+\.\d+", name)]:
        raise ValueError(f"{', '.join(without)} in settings.ini: write name>=major.minor.patch")
    return [name.replace(">=", "==") for name in named]


if __name__ == "__main__":
    print("\n".join(floors()))
