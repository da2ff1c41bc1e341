"""Tests of the grammar of --grid."""

from __future__ import annotations

import math

import pytest

from si_federated import config, sweeps

_FLAGS = {'client_learning_rate': True, 'clients_per_round': True}
_FLAGS.update({'model': False, 'transform': False, 'data_dir': False})


def _parse(text):
  return sweeps.parse_axis(text, _FLAGS, {'client_lr': 'client_learning_rate'})


@pytest.mark.parametrize(
  ('text', 'flag', 'values'),
  [
    ('client_learning_rate=0.1,0.3,1', 'client_learning_rate', '0.1 0.3 1'),
    ('client_learning_rate=0.1|0.3, 1', 'client_learning_rate', '0.1 0.3 1'),
    ('client_lr=3', 'client_learning_rate', '3'),
    ('--clients_per_round=5,10', 'clients_per_round', '5 10'),
    (
      'model=si_cifg:units=256|cifg:units=256,num_layers=2',
      'model',
      'si_cifg:units=256 cifg:units=256,num_layers=2',
    ),
    ('model=cifg:units=4,num_layers=2', 'model', 'cifg:units=4,num_layers=2'),
    (
      r'transform=none|freeze:variables=a\|b',
      'transform',
      'none freeze:variables=a|b',
    ),
    ('data_dir=log:0.1..3', 'data_dir', 'log:0.1..3'),
  ],
)
def test_values(text, flag, values):
  expected = tuple((value,) for value in values.split())
  assert _parse(text) == sweeps.Axis((flag,), expected)


def test_linked_flags_have_a_value_each():
  axis = _parse(r'model&client_lr&data_dir=cifg&0.3&a|cifg:units=4 & 1& b\&c')
  assert axis.flags == ('model', 'client_learning_rate', 'data_dir')
  assert axis.values == (('cifg', '0.3', 'a'), ('cifg:units=4', '1', 'b&c'))
  assert {axis.draw(0, i) for i in range(40)} == set(axis.values)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('client_learning_rate', 'FLAG=VALUE'),
    ('client_learning_rate=', 'FLAG=VALUE'),
    ('client_learning_rte=1', "did you mean 'client_learning_rate'"),
    ('client_learning_rate=1,,3', 'empty value'),
    ('model=cifg|', 'empty value'),
    ('model&client_lr=cifg&0.3|cifg', '1 of 2 values'),
    ('model&client_lr=cifg&|cifg&1', 'empty value'),
    ('model&rate=cifg&1', "no flag 'rate'"),
    ('model&client_lr=log:1..3', '1 of 2 values'),
    ('client_learning_rate=log:0..3', 'above 0'),
    ('client_learning_rate=log:3..0.1', 'ascending'),
    ('client_learning_rate=linear:0..inf', 'finite'),
    ('client_learning_rate=linear:a..2', 'numbers'),
    ('clients_per_round=int:1.5..2', 'whole numbers'),
  ],
)
def test_mistakes_are_errors_of_one_sentence(text, words):
  with pytest.raises(config.ConfigError, match=words) as caught:
    _parse(text)
  assert '\n' not in str(caught.value)


def test_drawn_numbers_are_uniform_in_the_logarithm():
  axis = _parse('client_learning_rate=log:0.01..3')
  drawn = [float(axis.draw(0, index)[0]) for index in range(400)]
  assert all(0.01 <= number <= 3 for number in drawn)
  middle = math.sqrt(0.01 * 3)
  below = sum(number < middle for number in drawn)
  # 400 fair coins deviate this much once in a million times.
  assert abs(below - 200) < 50
  assert min(drawn) < 0.015 and max(drawn) > 2


def test_draws_depend_on_seed_index_and_flag_only():
  rate = _parse('client_learning_rate=linear:0..1')
  assert rate.draw(0, 3) == rate.draw(0, 3)
  assert len({rate.draw(seed, 0) for seed in range(20)}) > 15
  other = sweeps.Axis(('clients_per_round',), range=rate.range)
  assert [rate.draw(0, i) for i in range(9)] != [
    other.draw(0, i) for i in range(9)
  ]


def test_integer_ranges_include_both_ends():
  axis = _parse('clients_per_round=int:1..3')
  assert {axis.draw(0, i)[0] for i in range(60)} == {'1', '2', '3'}


def test_listed_values_are_all_drawn():
  axis = _parse('model=cifg|lstm')
  assert {axis.draw(0, i)[0] for i in range(40)} == {'cifg', 'lstm'}
