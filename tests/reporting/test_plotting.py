"""Tests of legends, colors and pictures on a page."""

from __future__ import annotations

import itertools
import re

import matplotlib
import numpy as np
import pytest

from si_federated.reporting import plotting

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
def test_colors_are_distinguishable_for_every_vision(side, vision):
  labs = [
    _lab(np.array(_VISIONS[vision]) @ _linear(pair[side]))
    for pair in plotting.PALETTE
  ]
  for one, other in itertools.combinations(labs, 2):
    assert np.linalg.norm(one - other) > 15


def test_legend_lists_curves_in_the_order_in_which_they_end():
  with matplotlib.rc_context(rc=plotting.STYLE):  # type: ignore[arg-type]
    figure, axes = plotting.blank_axes('y', 3)
    for label, values in (
      ('falls', [3.0, 1.0]),
      ('si_transformer, client lr 0.3, mean', [2.0, 5.0]),
      ('empty', []),
    ):
      x, y = np.arange(len(values)), np.array(values)
      plotting.draw_band(axes, x, y, y, y, plotting.Style('C0'), label=label)
    plotting.draw_level(axes, 2.0, 'level')
    picture = plotting.finish('name', 'Caption.', figure, axes)
  texts = re.findall(r'<!-- (.*?) -->', picture.svg)
  # Labels break after commas only.
  assert texts[texts.index('y') + 1 :] == [
    *('si_transformer,', 'client lr 0.3,', 'mean'),
    *('level', 'falls', 'empty'),
  ]


@pytest.mark.parametrize(
  ('low', 'high', 'scale'),
  [(100.0, 150.0, 'linear'), (2.0, 4000.0, 'log'), (-1.0, 4000.0, 'linear')],
)
def test_wide_ranges_of_positive_values_are_logarithmic(low, high, scale):
  _, axes = plotting.blank_axes('y', 1)
  plotting.scale_y(axes, low, high)
  assert axes.get_yscale() == scale
  bottom, top = axes.get_ylim()
  assert bottom <= low and top > high


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
