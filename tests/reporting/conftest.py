"""Handmade run folders for the tests of reports."""

from __future__ import annotations

import csv
import json
import math

import pytest

COLUMNS = (
  'round_num',
  'train/loss',
  'eval/loss',
  'eval/perplexity',
  'eval/accuracy',
  'eval/accuracy_no_oov_no_eos',
  'round_secs',
  'secs_total',
  'bytes_up_per_client',
  'bytes_down_per_client',
  'bytes_up_total',
)


@pytest.fixture
def make_run(tmp_path):
  """Returns a function that writes a run folder and returns its path."""

  def make(
    name,
    *,
    perplexities=(4000.0, 800.0, 400.0, 200.0),
    losses=None,
    every=10,
    finished=True,
    task=None,
    seconds=2.0,
    config=None,
    bytes_up=4_700_000,
    **settings,
  ):
    folder = tmp_path / 'runs' / name
    folder.mkdir(parents=True)
    last = every * (len(perplexities) - 1)
    content = {
      'experiment_name': name,
      'root_output_dir': 'somewhere',
      'task': 'docstrings',
      'data_dir': None,
      'model': 'cifg:units=256,embedding_size=96',
      'client_optimizer': 'sgd',
      'client_learning_rate': 1.0,
      'server_optimizer': 'adam:epsilon=0.001',
      'server_learning_rate': 0.01,
      'clients_per_round': 20,
      'total_rounds': last,
      'model_seed': 0,
      'client_seed': 0,
      **settings,
    }
    if config is not False:
      (folder / 'config.json').write_text(json.dumps(content))
    facts = {
      'name': 'docstrings',
      'num_train_clients': 3894,
      'num_validation_clients': 412,
      'num_validation_examples': 10000,
      'num_words': 8000,
      'reference_perplexity': {'unigram': 512.3},
    }
    (folder / 'task.json').write_text(json.dumps(task or facts))
    if finished:
      summary = {'rounds': last, 'num_parameters': 1412730}
      (folder / 'summary.json').write_text(json.dumps(summary))
    with open(folder / 'metrics.csv', 'w', newline='') as file:
      writer = csv.DictWriter(file, COLUMNS)
      writer.writeheader()
      for round_num in range(last + 1):
        row = {'round_num': round_num, 'secs_total': seconds * round_num}
        if round_num:
          row['train/loss'] = 8.0 - round_num / 100
          row['round_secs'] = seconds
          row['bytes_up_per_client'] = bytes_up
          row['bytes_down_per_client'] = 4_700_000
          row['bytes_up_total'] = 20 * bytes_up * round_num
        if losses and round_num in losses:
          row['train/loss'] = losses[round_num]
        if round_num % every == 0:
          value = perplexities[round_num // every]
          row['eval/perplexity'] = value
          row['eval/loss'] = math.log(value)
          row['eval/accuracy'] = round_num / 1000
          row['eval/accuracy_no_oov_no_eos'] = round_num / 2000
        writer.writerow(row)
    return folder

  return make
