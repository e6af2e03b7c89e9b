"""Relations between images for the front end: neighbors, label issues, clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from whycam.report.columns import floats, integers, strings
from whycam.report.encoding import Indices
from whycam.study.neighbors import KINDS, SHOWN

if TYPE_CHECKING:
    from whycam.study.folder import Study


class Relations:
    """The study's tables of neighbors, label issues and clusters, in the report's order of errors.

    Args:
        study: the study.
        ids: the errors as the report lists them.

    Attributes:
        ids: the neighbors, each once: first those of rank 1 for some error, then further ones of rank 2, and so on.
        starts: where in ``ids`` the neighbors of rank 1, 2, … begin, and the end.
        clusters: (N,) each error's cluster, −1 for none.
        cluster_count: number of clusters.
    """

    def __init__(self, study: Study, ids: list[str]) -> None:
        self._study = study
        self._place = {name: i for i, name in enumerate(ids)}
        n = len(ids)
        self.ids: list[str] = []
        self.starts = [0]
        self._links: Indices = np.full((n, 2, SHOWN), -1, np.int64)
        self._similarity = np.full((n, 2, SHOWN), np.nan, np.float32)
        self._link()
        self.clusters: Indices = np.full(n, -1, np.int64)
        self._closeness = np.zeros(n, np.float32)
        table = study.clusters
        if table is not None:
            rows = self._rows(table)
            self.clusters[rows], self._closeness[rows] = integers(table, "cluster"), floats(table, "similarity")
        self.cluster_count = int(self.clusters.max(initial=-1)) + 1

    def data(self) -> dict[str, Any]:
        """The entries of the data block. ``bytes`` holds the number blocks in the order of the tuple below."""
        study, n = self._study, len(self._place)
        issues = study.label_issues
        rows = self._rows(issues)
        votes = np.zeros((3, n), np.uint8)
        for row, name in zip(votes, ("votes", "votes_predicted", "votes_label"), strict=True):
            row[rows] = integers(issues, name)
        score, suspect = np.zeros(n, np.float32), np.zeros(n, np.uint8)
        score[rows], suspect[rows] = floats(issues, "score"), issues["suspect"].to_numpy(zero_copy_only=False)
        predictions = study.predictions
        position = {name: i for i, name in enumerate(strings(predictions, "id"))} if self.ids else {}
        where = np.array([position[name] for name in self.ids], np.int64)
        blocks = (
            score.astype("<f4"), self._closeness.astype("<f4"), self._similarity.astype("<f4"),
            floats(predictions, "confidence")[where].astype("<f4"),
            self._links.astype("<i4"), self.clusters.astype("<i2"), suspect, votes,
        )  # fmt: skip
        return {
            "why": study.why_no_neighbors,
            "ids": self.ids,
            "starts": self.starts,
            "shown": SHOWN,
            "clusters": self.cluster_count,
            "bytes": b"".join(block.tobytes() for block in blocks),
        }

    def _rows(self, table: Any) -> Indices:
        return np.array([self._place[name] for name in strings(table, "id")], np.int64)

    def _link(self) -> None:
        table = self._study.neighbors
        if table is None:
            return
        number: dict[str, int] = {}
        shown: list[list[tuple[int, int, str, float]]] = [[] for _ in range(SHOWN)]
        columns = (strings(table, "id"), strings(table, "kind"), integers(table, "rank").tolist(),
                   strings(table, "neighbour_id"), floats(table, "similarity").tolist())  # fmt: skip
        for name, kind, rank, neighbor, similarity in zip(*columns, strict=True):
            if kind in KINDS[:2] and rank <= SHOWN:
                shown[rank - 1].append((self._place[name], KINDS.index(kind), neighbor, similarity))
        for place, entries in enumerate(shown):
            for error, side, neighbor, similarity in sorted(entries):
                self._links[error, side, place] = number.setdefault(neighbor, len(number))
                self._similarity[error, side, place] = similarity
            self.starts.append(len(number))
        self.ids = list(number)
