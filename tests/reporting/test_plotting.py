"""Tests of labels, colours and pictures on a page."""

from __future__ import annotations

import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from si_federated.reporting import plotting

_SIZES = strategies.lists(
  strategies.tuples(
    strategies.floats(0, 100), strategies.floats(1, 9, exclude_min=True)
  ),
  min_size=1,
  max_size=9,
)


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(_SIZES)
def test_labels_never_overlap_keep_their_order_and_stay_in_the_room(sizes):
  wanted, heights = zip(*sizes)
  places = plotting.spread(wanted, heights, 0, 100)
  boxes = sorted(
    (y - height / 2, y + height / 2) for y, height in zip(places, heights)
  )
  assert boxes[0][0] >= -1e-6
  assert boxes[-1][1] <= 100 + 1e-6
  for (_, top), (bottom, _) in zip(boxes, boxes[1:]):
    assert top <= bottom + 1e-6
  order = np.argsort(wanted, kind='stable')
  assert np.all(np.diff(np.array(places)[order]) > 0)


def test_labels_that_have_room_stay_and_neighbours_share_the_move():
  assert plotting.spread([10, 50], [8, 8], 0, 100) == [10, 50]
  assert plotting.spread([50, 52], [8, 8], 0, 100) == [47, 55]
  assert plotting.spread([99, 2], [8, 8], 0, 100) == [96, 4]
  # Three at one place, one nearby that is pushed along.
  assert plotting.spread([50, 50, 50, 56], [10] * 4, 0, 100) == [
    36.5,
    46.5,
    56.5,
    66.5,
  ]


# Machado et al. 2009, full red and green blindness, linear RGB.
_VISIONS = {
  'usual': np.eye(3),
  'protanopia': [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  'deuteranopia': [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
  ],
}


def _linear(color):
  values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
  return np.where(
    values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
  )


def _lab(rgb):
  xyz = np.array(
    [
      [0.4124, 0.3576, 0.1805],
      [0.2126, 0.7152, 0.0722],
      [0.0193, 0.1192, 0.9505],
    ]
  ) @ np.clip(rgb, 0, 1)
  f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
  return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize('vision', _VISIONS)
@pytest.mark.parametrize('side', [0, 1])
def test_colors_stay_apart_for_every_vision(side, vision):
  labs = [
    _lab(np.array(_VISIONS[vision]) @ _linear(pair[side]))
    for pair in plotting.PALETTE
  ]
  for one, other in itertools.combinations(labs, 2):
    assert np.linalg.norm(one - other) > 15


def test_page_version_has_own_ids_and_the_pages_colors():
  color = plotting.PALETTE[1][0]
  svg = (
    '<?xml version="1.0"?>\n<svg width="3"><metadata>x</metadata>'
    f'<path id="p" style="stroke: {color}"/><use href="#p" '
    'clip-path="url(#p)"/></svg>'
  )
  picture = plotting.Picture('loss', 'Less "is" more.', b'', svg)
  assert plotting.for_page(picture) == (
    '<svg role="img" aria-label="Less &quot;is&quot; more." width="3">'
    '<path id="loss-p" style="stroke: var(--c1)"/>'
    '<use href="#loss-p" clip-path="url(#loss-p)"/></svg>'
  )


def test_numbers_on_axes():
  assert [plotting.tick(v) for v in (0.5, 12, 150, 2000, 3e6, 1e12)] == [
    '0.5',
    '12',
    '150',
    '2,000',
    '3e6',
    '1e12',
  ]
  assert not any(
    re.search('[^0-9e.,]', plotting.tick(10.0**power)) for power in range(0, 30)
  )
