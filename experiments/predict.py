"""Suggests the next word with the model of a run.

  python -m experiments.predict --run=runs/first --text="returns the number of"

Without --text it asks for a line again and again, until an empty one or Ctrl-D.
Works while the run is still training: it takes the newest checkpoint.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
from absl import flags as absl_flags

from si_federated import flags

_RUN = absl_flags.DEFINE_string(
  'run', None, 'The folder of the run, such as runs/first.', required=True
)
_TEXT = absl_flags.DEFINE_multi_string(
  'text',
  None,
  'The beginning of a sentence; may be given several times. Asked for on the '
  'terminal if not given.',
)
_TOP = absl_flags.DEFINE_integer(
  'top', 5, 'How many words to suggest.', lower_bound=1
)
_CONTINUE = absl_flags.DEFINE_integer(
  'continue_words',
  0,
  'Also continue the text by up to so many words, the likeliest one each time.',
  lower_bound=0,
)


def _load(
  run: str,
) -> tuple[Callable[[str], tuple[np.ndarray, str]], list[str]]:
  """Returns a function from text to ids' probabilities, and the ids' words."""
  from si_federated import experiment

  model, vocabulary, file = experiment.load_model(run)
  print(f'Model of {file}.', file=sys.stderr)
  sequence_length = experiment.read_config(run).sequence_length
  # What a user can type: words, and the end of the sentence.
  words = ['', *vocabulary.words, '', '', '<end of sentence>']

  def predict(text: str) -> tuple[np.ndarray, str]:
    ids = [vocabulary.beginning, *vocabulary.encode(text)]
    unknown = [
      word
      for word, token in zip(vocabulary.split(text), ids[1:])
      if token == vocabulary.out_of_vocabulary
    ]
    note = f'not in the vocabulary: {" ".join(unknown)}' if unknown else ''
    # The model has learned from sentences cut to this length.
    ids = [ids[0], *ids[1:][-(sequence_length - 1) :]] if len(ids) > 1 else ids
    logits = model(np.array([ids], np.int32), training=False)[0, -1].numpy()
    logits = logits.astype(np.float64)
    logits[[0, vocabulary.out_of_vocabulary, vocabulary.beginning]] = -np.inf
    probabilities = np.exp(logits - logits.max())
    return probabilities / probabilities.sum(), note

  return predict, words


def main() -> None:
  """Prints suggestions for each text."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  predict, words = _load(_RUN.value)

  def show(text: str) -> None:
    probabilities, note = predict(text)
    print(f'{text} ...' + (f'  ({note})' if note else ''))
    for token in np.argsort(-probabilities)[: _TOP.value]:
      print(f'  {probabilities[token]:6.1%}  {words[token]}')
    continued: list[str] = []
    for _ in range(_CONTINUE.value):
      token = int(np.argmax(predict(' '.join([text, *continued]))[0]))
      if token == len(words) - 1:
        break
      continued.append(words[token])
    if continued:
      print(f'  {text} {" ".join(continued)}')

  if _TEXT.value:
    for text in _TEXT.value:
      show(text)
    return
  interactive = sys.stdin.isatty()
  while True:
    if interactive:
      print('text> ', end='', flush=True)
    line = sys.stdin.readline()
    if not line or (interactive and not line.strip()):
      break
    if line.strip():
      show(line.strip())


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
