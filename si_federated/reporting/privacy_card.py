"""Privacy report cards: the guarantee of a private run, and its limits."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import markupsafe
import matplotlib
import numpy as np

from si_federated.privacy import participation, strategies, strategy_files
from si_federated.reporting import plotting, rendering, run_groups, tables
from si_federated.reporting import runs as run_files
from si_federated.reporting.plotting import Picture
from si_federated.reporting.run_groups import Comparison
from si_federated.reporting.runs import Run
from si_federated.reporting.tables import Table

FILE = 'privacy.json'
_PAGE = 'privacy.html'
_LEGEND = (
  'The whole run: for every participation that the contract allows. Rounds so '
  'far: for the observed participation. Without amplification: against those '
  'who know who took part when. The best attack sees all releases and guesses '
  "whether a client's updates are in them: at that rate of false positives, no "
  'attack has more true positives. If the exact rate is unknown, an upper '
  'bound is given. For random guesses the two rates are equal.'
)
_RELATIONS = {
  'zero-out': 'zero-out: data sets in which all updates of one client become '
  'zero',
  'add-or-remove-one': 'add or remove one: data sets with and without one '
  'client',
}
_SAMPLINGS = {
  'poisson': 'Poisson, each client with probability {chance} in each round',
  'cyclic_poisson': 'Poisson, each client with probability {chance} in the '
  'turns of its group, of {groups} groups',
  'balls_in_bins': 'balls in bins, each client in each of {groups} groups with '
  'probability {chance}',
  'b_min_sep': 'Poisson, each client with probability {chance} in each round, '
  'at least {groups} rounds apart',
}
# More names of runs are counted.
_MANY = 3
# Entries that files of earlier versions lack.
_LATER = ('simulated_because', 'trust_model', 'released', 'strategy')


@dataclasses.dataclass(frozen=True)
class Card:
  """The privacy of one run, or of several with the same `privacy.json`.

  Attributes:
    heading: The runs' names.
    guarantee: Epsilon in a sentence.
    statements: Names and texts of the statements about the guarantee.
    numbers: The guarantee in several units.
    picture: The noise over rounds; None if the strategy is not known.
  """

  heading: str
  guarantee: str
  statements: Tuple[Tuple[str, Sequence[str]], ...]
  numbers: Table
  picture: Picture | None


def build(comparison: Comparison) -> List[Card]:
  """Builds the cards of all private runs.

  Args:
    comparison: The runs.

  Returns:
    A card for each different `privacy.json`, in the order of the runs.

  Raises:
    ValueError: If a `privacy.json` is not one of training.
  """
  alike: Dict[str, List[Run]] = {}
  for run in _private(comparison):
    alike.setdefault(json.dumps(run.privacy, sort_keys=True), []).append(run)
  cards = []
  for number, runs in enumerate(alike.values(), start=1):
    try:
      cards.append(_card(runs, f'privacy_noise_{number}'))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{runs[0].path / FILE} is not a file of training '
        f'({type(error).__name__}: {error}); restore it, or delete it to '
        'report without it.'
      ) from error
  return cards


def sentences(comparison: Comparison) -> List[str]:
  """Returns sentences about the cards, and about private runs without one.

  Args:
    comparison: The runs.
  """
  runs = list(_private(comparison))
  said = []
  if runs:
    what = f'{tables.count_of(len(runs))} with differential privacy'
    said.append(f'For {what}, {_PAGE} shows the guarantee and its limits.')
  said += [
    f'{run.name} has an ε but no {FILE}, and thus no privacy report card.'
    for run in comparison.runs
    if not run.privacy and run.last(run_files.EPSILON) is not None
  ]
  return said


def html(title: str, cards: Sequence[Card]) -> str:
  """Returns the cards as one self-contained page.

  Args:
    title: The heading.
    cards: From `build`.
  """
  shown = [
    (card, markupsafe.Markup(plotting.for_page(card.picture)))
    if card.picture
    else (card, '')
    for card in cards
  ]
  return rendering.render(
    'privacy.html.jinja', escape=True, title=title, cards=shown, legend=_LEGEND
  )


def markdown(title: str, cards: Sequence[Card]) -> str:
  """Returns the cards as Markdown that embeds the PNG files next to it.

  Args:
    title: The heading.
    cards: From `build`.
  """
  shown = [(card, '') for card in cards]
  return rendering.render(
    'privacy.md.jinja', escape=False, title=title, cards=shown, legend=_LEGEND
  )


def _private(comparison: Comparison) -> List[Run]:
  return [run for run in comparison.runs if run.privacy.get('private')]


def _card(runs: Sequence[Run], name: str) -> Card:
  facts, promised = runs[0].privacy, runs[0].privacy['promised']
  names = [run.name for run in runs[:_MANY]]
  if len(runs) > _MANY:
    names.append(f'{len(runs) - _MANY} more')
  picture, trouble = None, ''
  try:
    strategy = _strategy(facts, runs[0].path)
    picture = _draw(strategy, _noise(facts), name)
  except ValueError as error:
    trouble = f'not shown: {error}'
  statements: Dict[str, Sequence[str]] = {
    'Unit of privacy': [facts['unit']],
    'Neighbouring data sets': [
      _RELATIONS.get(
        facts['neighbouring_relation'], facts['neighbouring_relation']
      )
    ],
    'Trust model': _known([facts.get('trust_model')]),
    'Released with noise': _known(facts.get('released', [])),
    'Released without noise': facts['released_without_noise'],
    'Participation promised': [
      f'{participation.Participation(**promised["contract"])} '
      f'(--participation={facts["participation"]})'
    ],
    'Participation observed': [_observed(facts['observed'])],
    'Sampling that amplifies': [_sampling(promised)],
    'Mechanism': [_mechanism(facts, promised)],
    'Counted with it': [_earlier(one) for one in promised.get('earlier', [])],
    'Noise over rounds': [trouble] if trouble else [],
    'Not covered': facts['not_covered'],
    'Simulated, not real, because': facts.get('simulated_because')
    or ['the run says so, without reasons'] * bool(facts['simulated']),
    'Not recorded': _not_recorded(facts),
  }
  return Card(
    heading=', '.join(names),
    guarantee=_guarantee(facts, promised),
    statements=tuple(
      (key, texts) for key, texts in statements.items() if texts
    ),
    numbers=_numbers(facts, promised),
    picture=picture,
  )


def _not_recorded(facts: Mapping[str, Any]) -> List[str]:
  """Returns a phrase for what a file of an earlier version does not tell."""
  missing = [name for name in _LATER if name not in facts]
  if not missing:
    return []
  text = f'{", ".join(missing)} (the file is of an earlier version)'
  if 'simulated_because' in missing:
    text += '; whether privacy is simulated was judged by fewer reasons'
  return [text]


def _known(texts: Sequence[str | None]) -> List[str]:
  return [text for text in texts if text]


def _guarantee(facts: Mapping[str, Any], promised: Mapping[str, Any]) -> str:
  delta = facts['delta']
  text = f'ε {promised["epsilon"]:.3f} at δ {delta:.3g}'
  if _is_amplified(promised):
    plain = promised['epsilon_without_amplification']
    text += f', {plain:.3f} without amplification'
  text += ', for the whole run'
  if facts['observed']['rounds']:
    text += (
      f'; {facts["epsilon"]:.3f} after {facts["observed"]["rounds"]} rounds'
    )
  if facts['simulated']:
    text += '. It is simulated: this run itself does not provide it'
  return text + '.'


def _observed(observed: Mapping[str, Any]) -> str:
  text = (
    f'{observed["rounds"]} rounds, {observed["clients"]} clients, at most '
    f'{observed["max_participations"]} participations of a client'
  )
  if observed['min_separation']:
    least = observed['min_separation']
    text += f', {least} round{"s" * (least > 1)} or more apart'
  return text


def _is_amplified(promised: Mapping[str, Any]) -> bool:
  """Whether epsilon relies on secret sampling, here or in an earlier run."""
  return bool(promised['amplification']) or promised.get(
    'profile'
  ) != promised.get('profile_without_amplification')


def _sampling(promised: Mapping[str, Any]) -> str:
  amplification = promised['amplification']
  if not amplification:
    return 'none: who takes part may be known'
  chance, groups = amplification['probability'], amplification['groups']
  text = _SAMPLINGS.get(amplification['kind'], amplification['kind'])
  text = text.format(chance=f'{chance:.3g}', groups=groups)
  if most := amplification.get('max_cohort_size'):
    text += f', of whom at most {most} at random take part'
  if confidence := promised.get('epsilon_confidence'):
    text += f', accounted by Monte Carlo with confidence {confidence:g}'
  return text + '; who takes part must stay secret'


def _earlier(record: Mapping[str, Any]) -> str:
  """Returns a phrase about an earlier release on the same clients."""
  return (
    f'an earlier run on these clients (kind {record["kind"]}, noise multiplier '
    f'{record["noise_multiplier"]:.4g}, sensitivity '
    f'{record["sensitivity"]:.4g} clip norms)'
  )


def _noise(facts: Mapping[str, Any]) -> float:
  """Returns the noise on a round's sum of updates, in clip norms."""
  noise = facts.get('update_noise_multiplier')
  if noise is None:
    noise = facts['promised']['noise_multiplier']
  if size := facts.get('noise_cohort_size'):
    # The noise is on the mean over a larger cohort, so the sum here has less.
    noise *= facts['clients_per_round'] / size
  return noise


def _mechanism(facts: Mapping[str, Any], promised: Mapping[str, Any]) -> str:
  exact = 'exact' if promised['sensitivity_is_exact'] else 'an upper bound'
  clip = facts.get('clip_norm')
  text = f'{facts["mechanism"]} (kind {promised["kind"]})'
  if clip is not None:
    text += f', clip norm {clip:g}'
  return (
    f'{text}, noise multiplier {promised["noise_multiplier"]:.4g}, sensitivity '
    f'{promised["sensitivity"]:.4g} clip norms ({exact}: '
    f'{promised["sensitivity_method"]})'
  )


def _numbers(facts: Mapping[str, Any], promised: Mapping[str, Any]) -> Table:
  """Returns the table: a column for each guarantee, a row for each number."""
  guarantees = {'the whole run': promised}
  if 'so_far' in facts:
    guarantees['rounds so far'] = facts['so_far']
  profiles = {}
  for title, guarantee in guarantees.items():
    profiles[title] = _profile(guarantee, '')
    if _is_amplified(promised):
      profiles[f'{title}, without amplification'] = _profile(
        guarantee, '_without_amplification'
      )
  rows = list(dict.fromkeys(key for one in profiles.values() for key in one))
  columns = {'': rows}
  for title, profile in profiles.items():
    columns[title] = [profile.get(row, run_groups.MISSING) for row in rows]
  return tables.assemble(columns)


def _profile(guarantee: Mapping[str, Any], suffix: str) -> Dict[str, str]:
  """Returns the numbers of one guarantee by name."""
  # Files of earlier versions have no profile.
  profile = guarantee.get(f'profile{suffix}') or {
    'epsilons': [
      {'delta': guarantee['delta'], 'epsilon': guarantee[f'epsilon{suffix}']}
    ]
  }
  shown = {}
  for key, words in (('rho', 'ρ (zCDP)'), ('mu', 'μ (Gaussian DP)')):
    shown[words] = _cell(profile.get(key))
  for one in profile['epsilons']:
    shown[f'ε at δ {one["delta"]:.3g}'] = _cell(one['epsilon'])
  for one in profile.get('best_attack', []):
    false, true = one['false_positive_rate'], one['true_positive_rate']
    words = f'true positives of the best attack at {100 * false:g} % false ones'
    shown[words] = f'{100 * true:.2f} %'
  return shown


def _cell(value: float | None) -> str:
  return tables.cell(value, '{:.4g}')


def _strategy(
  facts: Mapping[str, Any], folder: pathlib.Path
) -> strategies.Strategy:
  """Returns the correlation of a run's noise.

  Raises:
    ValueError: If its file is missing or damaged, or has another strategy.
  """
  if facts.get('strategy') is None:
    promised = facts['promised']
    if not promised['kind'].startswith(('identity', 'distributed')):
      raise ValueError('the file does not tell how noise is correlated')
    # Noise from clients is independent in each round.
    return strategies.identity(promised['contract']['rounds'])
  return strategy_files.of_run(facts['strategy'], folder / 'strategy.npz')


def _draw(strategy: strategies.Strategy, noise: float, name: str) -> Picture:
  """Draws the noise of each round's update and of all updates so far."""
  updates, sums = (noise * np.sqrt(part) for part in strategy.noise_variances())
  rounds = np.arange(1, len(sums) + 1)
  with matplotlib.rc_context(rc=plotting.STYLE):  # type: ignore[arg-type]
    figure, axes = plotting.blank_axes('Noise (clip norms)', 2)
    dots = 'o' if len(rounds) <= 12 else None
    for values, label, color in (
      (sums, 'all updates so far', plotting.PALETTE[0][0]),
      (updates, "a round's update", plotting.PALETTE[1][0]),
    ):
      axes.plot(
        rounds, values, color=color, label=label, marker=dots, markersize=2.8
      )
    plotting.scale_y(
      axes,
      float(min(updates.min(), sums.min())),
      float(max(updates.max(), sums.max())),
    )
    plotting.scale_rounds(axes)
    axes.set_xlim(0, math.ceil(rounds[-1]))
    caption = (
      'Standard deviation of the noise in the sum of updates that each round '
      'releases, and in the sum of all updates so far; per coordinate, in '
      'units of the clip norm.'
    )
    return plotting.finish(name, caption, figure, axes)
