from __future__ import annotations

import os
import subprocess
import sys

import pytest

_MAIN = """
import sys
from si_federated import flags
def main():
  print('caf\\u00e9')
  print('na\\u00efve', file=sys.stderr)
  raise ValueError('\\u00fcber')
flags.run_main(main)
"""


@pytest.mark.parametrize(
  ('encoding', 'out', 'err'),
  [
    ('ascii', b'caf?\n', b'na?ve\nerror: ?ber\n'),
    ('utf-8', 'café\n'.encode(), 'naïve\nerror: über\n'.encode()),
  ],
)
def test_characters_that_the_output_cannot_show_are_replaced(
  encoding, out, err
):
  result = subprocess.run(
    [sys.executable, '-c', _MAIN],
    env={**os.environ, 'PYTHONIOENCODING': encoding},
    capture_output=True,
    check=False,
  )
  assert (result.returncode, result.stdout, result.stderr) == (1, out, err)
