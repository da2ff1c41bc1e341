"""Tests of figures and sentences about single clients."""

from __future__ import annotations

import json

import pytest

from si_federated import reporting
from si_federated.reporting import client_figures, page


def _described(low):
  quantiles = dict(
    zip(('10', '25', '50', '75', '90'), range(low, low + 50, 10))
  )
  return {'quantiles': quantiles, 'mean': 1.0, 'worst_tenth': 2.0}


@pytest.fixture(name='comparison')
def _comparison(make_run):
  folder = make_run('experts')
  (folder / 'personalization.json').write_text(
    json.dumps(
      {
        'summary': {
          'num_clients': 50,
          'num_worse': 3,
          'median_perplexity_before': 90.0,
          'median_perplexity_after': 70.0,
        },
        'metrics': {
          'perplexity': {'before': _described(70), 'after': _described(50)}
        },
      }
    )
  )
  (folder / 'experts.json').write_text(
    json.dumps(
      {
        'summary': {
          'num_clients': 20,
          'num_opted_out': 7,
          'num_mixture_at_least_best': 19,
          'median_perplexity_mixture': 55.0,
          'median_perplexity_global': 99.0,
        },
        'models': {
          'own': {
            'all': {
              name: {'perplexity': _described(30 + 10 * i)}
              for i, name in enumerate(
                ('global', 'fine_tuned', 'local', 'mixture')
              )
            }
          }
        },
      }
    )
  )
  return folder, reporting.compare(
    [reporting.read_run(folder), reporting.read_run(make_run('plain'))]
  )


def test_pictures(comparison):
  pictures = client_figures.draw(comparison[1])
  assert [one.name for one in pictures] == [
    'clients_fine_tuned',
    'clients_experts',
  ]
  assert all(one.png.startswith(b'\x89PNG') for one in pictures)


def test_sentences(comparison):
  said = page.findings(comparison[1])
  assert (
    'experts: fine-tuned on their own text, 50 validation clients go from '
    'median perplexity 90.0 to median perplexity 70.0; 3 got worse.'
  ) in said
  (sentence,) = (one for one in said if 'mixture' in one)
  assert '20 clients (7 opted out)' in sentence and 'model for 19;' in sentence


def test_runs_without_either_file(make_run):
  plain = reporting.compare([reporting.read_run(make_run('plain'))])
  assert client_figures.draw(plain) == []
  assert client_figures.sentences(plain) == []


def test_garbled_file_is_an_error(comparison):
  folder, compared = comparison
  (folder / 'experts.json').write_text('[')
  with pytest.raises(ValueError, match=r'experts.json is not a JSON object'):
    client_figures.draw(compared)


def test_numbers_that_are_missing_leave_a_picture_out(comparison):
  folder, compared = comparison
  content = json.loads((folder / 'personalization.json').read_text())
  content['metrics']['perplexity']['after']['quantiles']['50'] = None
  (folder / 'personalization.json').write_text(json.dumps(content))
  assert [one.name for one in client_figures.draw(compared)] == [
    'clients_experts'
  ]
