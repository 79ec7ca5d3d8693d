"""Make matplotlib figures, and put figures and recordings into a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def new_figure(rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Make a figure with ``rows`` axes one below the other; it needs no screen.

    Parameters
    ----------
    rows
        Number of axes. With 1, the second value returned is one axes, otherwise an array of them.
    **options
        Those of `matplotlib.pyplot.subplots`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, 1, layout="constrained", **options)


def legend_above(figure: Figure) -> None:
    """Put the legend of all axes above them."""
    figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)


def figure_uri(figure: Figure, *, vector: bool = True) -> str:
    """Return the figure as a data: address, SVG with ``vector`` and else PNG, and close it."""
    import matplotlib
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    # Text stays text; fixed salt and date: the same figure is the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hmamba_asr"}):
        if vector:
            figure.savefig(stream, format="svg", metadata={"Date": None})
        else:
            figure.savefig(stream, format="png", dpi=90)
    plt.close(figure)
    kind = "svg+xml" if vector else "png"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def audio_uri(samples: np.ndarray, sample_rate: int) -> str:
    """Return samples (S,) as MP3, which every browser plays, in a data: address."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate, format="MP3")
    return f"data:audio/mpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
