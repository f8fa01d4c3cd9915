"""Print every requirement at the lowest version settings.ini allows, as constraints for pip."""
import re
from configparser import ConfigParser
from pathlib import Path

ASKED = re.compile(r"(?P<name>[\w.-]+)>=(?P<floor>[\w.]+)")


def floors(requirements: str) -> list[str]:
    "Each requirement at its floor; ValueError for one that is not a name and a floor."
    found = {asked: ASKED.fullmatch(asked) for asked in requirements.split()}
    if odd := [asked for asked, match in found.items() if not match]:
        raise ValueError(
            f"settings.ini asks for {', '.join(odd)}: a requirement is a name and a floor, "
            "as in numpy>=1.26, because a CI job installs every floor"
        )
    return [f"{match['name']}=={match['floor']}" for match in found.values()]


if __name__ == "__main__":
    parser = ConfigParser()
    parser.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
    print("\n".join(floors(parser["DEFAULT"]["requirements"])))
