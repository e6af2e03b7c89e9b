"""Parts of a block of images, for the tests of neighbors and label issues."""

from __future__ import annotations

from whycam.study.neighbors import Block


def part(block, rows):
    return Block(block.index[rows], block.label[rows], block.correct[rows], block.features[rows])
