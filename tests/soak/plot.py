"""The curves of a soak as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from tests.chaos.rounds import Round
from tests.soak.curves import Sample, lives_of

PANELS = {
    "memory_mb": "resident memory, MB",
    "descriptors": "descriptors",
    "threads": "threads",
    "lag_seconds": "lag, s",
}


def draw(samples: Sequence[Sample], begun: Sequence[tuple[float, Round]], path: Path) -> None:
    """One line per process, in its node's colour; ``begun``: when each round began."""
    figure, panels = plt.subplots(len(PANELS), 1, sharex=True, figsize=(11, 10))
    names = sorted({sample.node for sample in samples})
    for panel, (field, title) in zip(panels, PANELS.items(), strict=True):
        for at, _ in begun:
            panel.axvline(at, color="0.92", linewidth=0.6, zorder=0)
        for (node, _), life in lives_of(samples).items():
            times = [sample.seconds for sample in life]
            panel.plot(
                times,
                [getattr(sample, field) for sample in life],
                color=f"C{names.index(node)}",
                linewidth=0.9,
            )
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
    for number, name in enumerate(names):
        panels[0].plot([], [], color=f"C{number}", label=name)
    panels[0].legend(loc="lower right", ncols=len(names))
    panels[0].set_title("bridges under load and faults; a grey line: a fault begins")
    panels[-1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
