"""Quantized transport of updates and models, with exact byte counts."""

from __future__ import annotations

from collections.abc import Callable

from si_federated.compression.compressors import (
  Compressor,
  Float32,
  Ternary,
  Uniform,
)
from si_federated.compression.download import build_download
from si_federated.compression.keys import round_seed
from si_federated.compression.updates import (
  decode_update,
  deserialize,
  encode_update,
  num_bytes,
  serialize,
)
from si_federated.compression.upload import build_upload

COMPRESSORS: dict[str, Callable[..., Compressor]] = {
  'float32': Float32,
  'uniform': Uniform,
  'ternary': Ternary,
}

__all__ = [
  'COMPRESSORS',
  'Compressor',
  'Float32',
  'Ternary',
  'Uniform',
  'build_download',
  'build_upload',
  'decode_update',
  'deserialize',
  'encode_update',
  'num_bytes',
  'round_seed',
  'serialize',
]
