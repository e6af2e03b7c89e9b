"""whycam: explain the decisions of image classifiers with Grad-CAM and related methods.

Start with `whycam.load` and `whycam.explain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whycam._lazy import lazy_names
from whycam._version import __version__ as __version__

if TYPE_CHECKING:
    # isort: off
    # fmt: off
    from whycam.cam import (
        Binary as Binary, Boxes as Boxes, ClassScore as ClassScore, Explainer as Explainer,
        Explanation as Explanation, Factorization as Factorization, Finer as Finer, Layout as Layout,
        LogProbability as LogProbability, Margin as Margin, Output as Output, Predicted as Predicted,
        Probability as Probability, ReST as ReST, Segmentation as Segmentation, Similarity as Similarity,
        WholeOutput as WholeOutput, explain as explain, factorize as factorize,
        load_explanation as load_explanation,
    )
    from whycam.comparison import compare as compare
    from whycam.data import Preprocess as Preprocess, open_source as open_source
    from whycam.errors import WhycamError as WhycamError
    from whycam.models import (
        ModelSpec as ModelSpec, load as load, save_checkpoint as save_checkpoint, summarize as summarize,
    )
    from whycam.study import Study as Study
    # fmt: on
    # isort: on

# Where each public name lives. Names are imported on first use, so that `whycam --help` answers without torch.
_PUBLIC = {
    "whycam.cam": """
        Binary Boxes ClassScore Explainer Explanation Factorization Finer Layout LogProbability Margin Output
        Predicted Probability ReST Segmentation Similarity WholeOutput explain factorize load_explanation
    """,
    "whycam.comparison": "compare",
    "whycam.data": "Preprocess open_source",
    "whycam.errors": "WhycamError",
    "whycam.models": "ModelSpec load save_checkpoint summarize",
    "whycam.study": "Study",
}
_HOMES = {name: home for home, names in _PUBLIC.items() for name in names.split()}

__getattr__ = lazy_names(
    __name__,
    _HOMES,
    moved={
        "Factorisation": "whycam:Factorization",
        "factorise": "whycam:factorize",
        "summarise": "whycam:summarize",
    },
)
__all__ = ["__version__", *sorted(_HOMES)]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
