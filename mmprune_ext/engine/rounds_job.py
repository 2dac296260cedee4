"""The folders of a job of rounds, what it remembers in them, and the config of each round."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmprune_ext.analysis.tables import render
from mmprune_ext.atomic import atomic_write
from mmprune_ext.compact.checkpoint import read_checkpoint
from mmprune_ext.compact.export import CHECKPOINT, FOLDER, Exported
from mmprune_ext.engine.parts import LAST, latest_checkpoint, place_in_folder, standing_alone
from mmprune_ext.engine.rounds import KEYS, Target
from mmprune_ext.errors import ConfigError
from mmprune_ext.settings.checks import calibration_of

STATE, TABLE = 'rounds.json', 'rounds.txt'
ROUND = 'round'  # under which the meta of a checkpoint holds the number of its round


class RoundsJob:
    """A job of rounds in its work folder.

    ``rounds.json`` there says which rounds have begun, to what target, and of those that are done what came out. What
    it does not name has not happened, whatever else lies in the folder.

    Args:
        config: Of the job.
        targets: What each round is pruned to (:func:`mmprune_ext.engine.rounds.targets_of`).
    """

    def __init__(self, config: Config, targets: Sequence[Target]) -> None:
        self.config, self.targets = config, list(targets)
        self.root = Path(config.work_dir)
        for number in range(1, len(self.targets) + 1):
            if self.folder(number).exists() and not self.folder(number).is_dir():
                raise ConfigError(f'{self.folder(number)} is a file, where round {number} is to work; choose another '
                                  'work_dir')

    def folder(self, number: int) -> Path:
        """Return the folder in which a round works."""
        return self.root / f'round_{number}'

    def result(self, number: int) -> Path:
        """Return the folder of the compact model that a round ends with."""
        return self.folder(number) / FOLDER

    def start(self) -> tuple[int, str | None]:
        """Return the round with which the job begins or goes on, and the checkpoint where it was, if there is one.

        Raises:
            ConfigError: If a round that has begun was pruned to another target than the config says, or there are
                more of them than in the config.
        """
        config = self.config
        if not config.get('resume'):
            return 1, None
        begun = {entry['round']: entry for entry in self._read()['rounds']}
        checkpoint = config.get('load_from')
        if checkpoint:
            number = read_checkpoint(checkpoint)['meta'].get(ROUND, 1)
            if number > len(self.targets):
                raise ConfigError(f'checkpoint {checkpoint} is of round {number}, but the config has '
                                  f'{len(self.targets)} rounds; give that many, or another checkpoint')
        else:
            if max(begun, default=0) > len(self.targets):
                raise ConfigError(f'{self.root / STATE}: round {max(begun)} has begun, but the config has '
                                  f'{len(self.targets)} rounds; resume with that many or more, or begin anew in '
                                  'another work_dir')
            done = [number for number, entry in begun.items() if 'parameters' in entry]
            number = min(max(done, default=0) + 1, len(self.targets))
            checkpoint = latest_checkpoint(self.folder(number)) if number in begun else None
        for earlier, entry in begun.items():
            self._check_target(earlier, entry['target'], number)
        return number, checkpoint

    def _check_target(self, number: int, target: Any, present: int) -> None:
        """Check that a round that has begun, up to the present one, was pruned to what the config says."""
        if number <= present and target != _plain(self.targets[number - 1]):
            hint = ' (the number of rounds is one of them: it says where each stands on the way to a budget)' * (
                'budget' in target)
            raise ConfigError(f'{self.root / STATE}: round {number} was pruned to {target}, but the config says '
                              f'{_plain(self.targets[number - 1])}; resume with the settings of the job{hint}, or '
                              'begin anew in another work_dir')

    def part(self, number: int, checkpoint: str | None = None) -> Config:
        """Return the config of a round: a pruning run like any other.

        Args:
            number: Of the round, from 1.
            checkpoint: Of the round, to go on from.
        """
        part = standing_alone(self.config)
        place_in_folder(part, self.config, self.folder(number).name)
        part.resume = False
        for key in KEYS:
            part.model.pop(key, None)
        part.model.update(copy.deepcopy(self.targets[number - 1]))
        calibration = calibration_of(part.model)
        if calibration.get('partial'):  # sums of one round are of no other
            calibration['partial'] = f'{calibration["partial"]}.{self.folder(number).name}'
        if checkpoint is not None:
            part.resume, part.load_from, part.model.units = True, checkpoint, checkpoint
        elif number > 1:
            part.load_from, part.model.checkpoint = None, str(self.result(number - 1) / CHECKPOINT)
            part.model.pop('from_scratch', None)  # of the first round
        return part

    def begin(self, number: int, resumed: bool) -> None:
        """Remember that a round has begun, and forget what is behind it: rounds of an earlier job, or of a run anew."""
        content = self._read() if number > 1 else _nothing()
        content['rounds'] = [entry for entry in content['rounds'] if entry['round'] < number]
        if not resumed:
            # First of all: a job that is cut off here must not take the checkpoints below for its own.
            self._write(content)
        for pointer in self.root.glob(f'round_*/{LAST}'):
            later = pointer.parent.name.removeprefix('round_')
            if later.isdecimal() and int(later) >= number + resumed:
                pointer.unlink()
        content['rounds'].append({'round': number, 'target': _plain(self.targets[number - 1])})
        self._write(content)

    def end(self, number: int, written: Exported, metrics: Mapping[str, Any]) -> str:
        """Remember what a round has ended with.

        Args:
            number: Of the round.
            written: What it exported.
            metrics: Of its last validation.

        Returns:
            The table of the rounds so far, and where the last result is.
        """
        report, content = written.report, self._read()
        content['dense'] = {'channels': sum(unit.num_channels for unit in report.units.values()),
                            'parameters': report.dense.params, 'macs': report.dense.macs,
                            'counted_on': report.dense.sample}
        content['rounds'][-1].update(
            folder=str(self.result(number).relative_to(self.root)),
            channels=sum(unit.keep for unit in report.units.values()), parameters=report.compact.params,
            macs=report.compact.macs, metrics=dict(metrics))
        self._write(content)
        text = self.table()
        atomic_write(text, self.root / TABLE)
        return text

    def table(self) -> str:
        """Return the rounds that are done as text."""
        content = self._read()
        done = [entry for entry in content['rounds'] if 'parameters' in entry]
        names = list(dict.fromkeys(name for entry in done for name in entry['metrics']))
        rows = [('dense' if entry is content['dense'] else entry['round'], f'{entry["channels"]:,}',
                 f'{entry["parameters"]:,}', f'{entry["macs"]:,}',
                 *(_number(entry.get('metrics', {}).get(name)) for name in names))
                for entry in (content['dense'], *done)]
        title = f'Rounds, whole model, {content["dense"]["counted_on"]}'
        table = render(('round', 'channels', 'parameters', 'MACs', *names), rows, title, range(1, 4 + len(names)))
        return f'{table}last result: {self.root / done[-1]["folder"]}\n'

    def _read(self) -> dict[str, Any]:
        """Return what is remembered: of the dense model, and of each round that has begun.

        Raises:
            ConfigError: If the file is none that a job wrote.
        """
        path = self.root / STATE
        if not path.is_file():
            return _nothing()
        try:
            content = json.loads(path.read_text())
            if all(type(entry['round']) is int and isinstance(entry['target'], dict) for entry in content['rounds']):
                return content
        except (ValueError, KeyError, TypeError):
            pass
        raise ConfigError(f'{path}: not what a job of rounds wrote; choose another work_dir, or remove the file to '
                          'begin anew')

    def _write(self, content: Mapping[str, Any]) -> None:
        atomic_write(json.dumps(content, indent=1) + '\n', self.root / STATE)


def _nothing() -> dict[str, Any]:
    return {'schema': 1, 'dense': None, 'rounds': []}


def _plain(target: Target) -> dict[str, Any]:
    """Return a target as JSON holds it, without what the tools add."""
    plain = json.loads(json.dumps(target, default=str))
    if isinstance(plain.get('budget'), dict):
        plain['budget'].pop('input_size', None)
    return plain


def _number(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, (int, float)) else ''
