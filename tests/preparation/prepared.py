"""Reads what a preparation wrote, as users of TFF would."""

from __future__ import annotations

import pathlib
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_SPEC = {
  name: tf.io.FixedLenFeature([], dtype)
  for name, dtype in {
    'creation_date': tf.string,
    'score': tf.int64,
    'tags': tf.string,
    'title': tf.string,
    'tokens': tf.string,
    'type': tf.string,
  }.items()
}


def read_examples(
  output: pathlib.Path, split: str
) -> dict[str, list[dict[str, Any]]]:
  """Returns a split's examples by client, each by the names of its fields."""
  data = tff.simulation.datasets.SqlClientData(
    str(output / 'stackoverflow.sqlite'), split
  )
  return {
    client: [
      {
        name: value.numpy().decode() if value.dtype == tf.string else int(value)
        for name, value in tf.io.parse_single_example(one, _SPEC).items()
      }
      for one in data.create_tf_dataset_for_client(client)
    ]
    for client in data.client_ids
  }


def read_tokens(output: pathlib.Path, split: str) -> dict[str, list[str]]:
  """Returns a split's sentences by client."""
  return {
    client: [one['tokens'] for one in examples]
    for client, examples in read_examples(output, split).items()
  }
