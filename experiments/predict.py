"""Suggests the next word with the model of a run.

  python -m experiments.predict --run=runs/first --text="returns the number of"

Without --text it asks for a line again and again, until an empty one or Ctrl-D.
Works while the run is still training: it takes the newest checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

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


def main() -> None:
  """Prints suggestions for each text."""
  from si_federated import trained_model

  trained = trained_model.load_model(_RUN.value)
  vocabulary = trained.vocabulary
  print(f'Model of {trained.checkpoint}.', file=sys.stderr)

  def probabilities(ids: list[int]) -> np.ndarray:
    # The model has learned from sentences cut to a length: give it the end of
    # a longer one.
    recent = ids[max(0, len(ids) + 1 - trained.config.sequence_length) :]
    batch = np.array([[vocabulary.beginning, *recent]], np.int32)
    logits = trained.model(batch, training=False)[0, -1].numpy()
    logits = logits.astype(np.float64)
    never = [
      vocabulary.padding,
      vocabulary.out_of_vocabulary,
      vocabulary.beginning,
    ]
    logits[never] = -np.inf
    likelihoods = np.exp(logits - logits.max())
    return likelihoods / likelihoods.sum()

  def word(token: int) -> str:
    if token == vocabulary.end:
      return '(end of sentence)'
    return vocabulary.decode([token])[0]

  def show(text: str) -> None:
    ids = vocabulary.encode(text)
    print(f'{" ".join(vocabulary.decode(ids))} ...')
    suggested = probabilities(ids)
    for token in np.argsort(-suggested)[: _TOP.value]:
      print(f'  {suggested[token]:6.1%}  {word(int(token))}')
    longer = list(ids)
    while len(longer) < len(ids) + _CONTINUE.value:
      token = int(np.argmax(probabilities(longer)))
      if token == vocabulary.end:
        break
      longer.append(token)
    if _CONTINUE.value:
      print(f'  {" ".join(vocabulary.decode(longer))}')

  for text in _TEXT.value or _typed_lines():
    show(text)


def _typed_lines() -> Iterator[str]:
  interactive = sys.stdin.isatty()
  while True:
    if interactive:
      print('text> ', end='', flush=True)
    line = sys.stdin.readline()
    if not line or (interactive and not line.strip()):
      return
    if line.strip():
      yield line.strip()


def run() -> None:
  """Runs the binary."""
  flags.run_main(main)


if __name__ == '__main__':
  run()
