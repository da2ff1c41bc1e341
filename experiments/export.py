"""Exports the model of a run for servers and devices.

  python -m experiments.export --run=runs/first --output=exported

This writes the vocabulary, a TensorFlow SavedModel, a TensorFlow Lite file and
export.json, which explains how to call them. Both models have a signature
`next_token` (ids of the sentence so far -> the most likely next ids and their
probabilities) and a signature `logits`.
"""

from __future__ import annotations

import os

from absl import flags as absl_flags

from si_federated import flags

_RUN = absl_flags.DEFINE_string(
  'run', None, 'The folder of the run, such as runs/first.', required=True
)
_OUTPUT = absl_flags.DEFINE_string(
  'output', None, 'The folder to write to; RUN/exported by default.'
)
_FORMATS = absl_flags.DEFINE_list(
  'formats',
  ['saved_model', 'tflite'],
  'The formats: saved_model, tflite, and adapters (the adapters of '
  '--transform=lora, without the model).',
)
_TOP = absl_flags.DEFINE_integer(
  'top', 5, 'The number of next tokens to suggest.', lower_bound=1
)
_PRECISION = absl_flags.DEFINE_string(
  'tflite_precision',
  'float32',
  'The precision of weights in the TensorFlow Lite file: float32, float16 or '
  'int8.',
)


def main() -> None:
  """Exports the model, and prints the files written."""
  from si_federated.inference import export
  from si_federated.privacy import ledger

  output = _OUTPUT.value or os.path.join(_RUN.value, 'exported')
  facts = export.export_model(
    _RUN.value,
    output,
    formats=tuple(_FORMATS.value),
    top=_TOP.value,
    tflite_precision=_PRECISION.value,
  )
  for kind, written in facts['written'].items():
    path = os.path.join(output, written['path'])
    print(f'{kind}: {path}, {written["bytes"] / 1e6:.1f} MB')
  if facts['privacy'].get('private'):
    print(ledger.sentence(facts['privacy']))
  print(f'How to call them: {os.path.join(output, "export.json")}')


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
