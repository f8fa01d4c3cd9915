"""Print what the quickstart measured, in five lines: what `make demo` ends in, and what the preface shows of the kept report."""
import json
import sys
from pathlib import Path


def summary(report: dict) -> str:
    "The quickstart's report in words."
    best = max(report["samplers"], key=lambda way: report["samplers"][way]["right"])
    ways = {way: report["samplers"][way]["right"] for way in (best, "random order, one a call", "surest first, 20 calls")}
    return "\n".join([
        f"{report['parameters']:,} parameters, {report['updates']:,} updates in {report['training_seconds']:.0f} s on {report['threads']} threads ({report['device']}, {report['precision']})",
        f"nats a tale:      at most {report['nelbo']:.2f}, where the entropy is {report['entropy']:.2f}",
        f"above the truth:  {report['gap_to_truth']:.2f} ± {report['gap_standard_error']:.2f} nats a tale",
        "entirely right:   " + "; ".join(f"{right:.1%} {way}" for way, right in ways.items()),
        f"confidence:       {report['confidence_right']:.2f} where it is right, {report['confidence_wrong']:.2f} where it is wrong",
    ])


if __name__ == "__main__":
    print(summary(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
