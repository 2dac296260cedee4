"""One job of two parts: channels are searched, then the compact model is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from mmprune_ext.compact.compact_model import load_units
from mmprune_ext.compact.export import CHECKPOINT, FOLDER, UNITS, without_pretrained
from mmprune_ext.errors import ConfigError
from mmprune_ext.registry import RUNNERS
from mmprune_ext.settings.completion import prepare_pruning
from mmprune_ext.workflows.pruning import export_run

SEARCH = 'search'  # the section of a config, and the folder of the first part in that of the run
LAST = 'last_checkpoint'  # mmengine's file that names a run's latest checkpoint


@RUNNERS.register_module()
class SearchRunner(Runner):
    """Search channels as one run, prune, and train the compact model as another, from one config.

    ``search`` holds the settings of the first part: its keys stand in the place of the config's own of that name,
    the whole of each. The config's own are those of the second part, which is an ordinary run: its optimizer, schedule
    and hooks begin when the model is compact::

        runner_type = 'mmprune_ext.SearchRunner'
        search = dict(train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=1), optim_wrapper=dict(...),
                      param_scheduler=[])

    The search works in ``search`` in the work folder, and exports its result to ``search/compact``: a compact config
    that a job of its own can train. A run that is resumed goes on in the part where it was. A model that has its
    channels already (``units``) skips the search.
    """

    later: Config | None = None

    @classmethod
    def from_cfg(cls, cfg: Config) -> SearchRunner:
        """Return the runner of the part that is next; training it goes on with the one after.

        Raises:
            ConfigError: If ``search`` is malformed.
        """
        cfg = copy.deepcopy(cfg)
        check_search(cfg)
        if _chosen(cfg.model) or cfg.get('resume') and cfg.model.get('units') is None and _is_done(cfg):
            part, later = training_part(cfg), None
        else:
            part, later = search_part(cfg), cfg
        prepare_pruning(part)
        runner = super().from_cfg(part)
        runner.later = later
        return runner

    def train(self) -> nn.Module:
        """Train this part, then the other if this one was the search.

        Returns:
            The model of the last part.
        """
        if self.later is not None and not self._resume and is_main_process():
            _forget(self.later)
        model = super().train()
        if self.later is None:
            return model
        if is_main_process():
            checkpoint = find_latest_checkpoint(self.work_dir)
            if checkpoint is None:
                raise ConfigError(f'SearchRunner: the search wrote no checkpoint into {self.work_dir}, so that nothing '
                                  'can be pruned; set default_hooks.checkpoint')
            written = export_run(standing_alone(self.later), checkpoint, _result(self.later))
            self.logger.info('search is over, compact model: %s\n%s', written.checkpoint, written.report.text())
        barrier()
        part = training_part(self.later)
        prepare_pruning(part)
        return Runner.from_cfg(part).train()


def check_search(config: Mapping[str, Any]) -> None:
    """Check the section ``search`` of a config.

    Raises:
        ConfigError: If there is none, or it trains nothing.
    """
    search = config.get(SEARCH)
    if not isinstance(search, Mapping) or not isinstance(search.get('train_cfg'), Mapping):
        raise ConfigError('runner_type is SearchRunner, but the config says nothing about the search; set search='
                          'dict(train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=1), optim_wrapper=...)')
    length = search['train_cfg'].get('max_epochs', search['train_cfg'].get('max_iters'))
    if type(length) is not int or length < 1:
        raise ConfigError('search.train_cfg: a search needs max_epochs (or max_iters) of at least 1, but got '
                          f'{length!r}')


def search_part(config: Config) -> Config:
    """Return the config of the run that searches."""
    part = standing_alone(config)
    for key, value in config[SEARCH].items():
        part[key] = copy.deepcopy(value)
    part.work_dir = str(_folder(config))
    part.experiment_name = f'{config.get("experiment_name") or Path(config.work_dir).name}_{SEARCH}'
    if config.get('resume') and part.model.get('units') is None:
        # Structure and weights of the checkpoint that mmengine is going to find there.
        path = find_latest_checkpoint(part.work_dir) if (_folder(config) / LAST).is_file() else None
        part.load_from = part.model.units = path
    return part


def training_part(config: Config) -> Config:
    """Return the config of the run that trains the compact model."""
    part = standing_alone(config)
    if _chosen(config.model):
        return part
    if config.get('resume') and (Path(config.work_dir) / LAST).is_file():
        part.load_from = part.model.units = find_latest_checkpoint(config.work_dir)
    else:
        part.model.units = str(_result(config) / UNITS)
        # All weights come from the search.
        part.model.checkpoint, part.model.architecture = None, without_pretrained(part.model.architecture)
        part.load_from, part.resume = str(_result(config) / CHECKPOINT), False
    return part


def standing_alone(config: Config) -> Config:
    """Return a config of two parts without what makes it one."""
    alone = copy.deepcopy(config)
    for key in (SEARCH, 'runner_type'):
        alone.pop(key, None)
    return alone


def _chosen(model: Mapping[str, Any]) -> bool:
    """Whether a model is given its channels, by a file or the checkpoint of a run that is resumed."""
    units = model.get('units')
    return units is not None and any(unit.indices is not None for unit in load_units(units).values())


def _folder(config: Mapping[str, Any]) -> Path:
    return Path(config['work_dir']) / SEARCH


def _result(config: Mapping[str, Any]) -> Path:
    return _folder(config) / FOLDER


def _is_done(config: Mapping[str, Any]) -> bool:
    """Whether a search has been exported; the report is what an export writes last."""
    return (_result(config) / 'report.json').is_file()


def _forget(config: Mapping[str, Any]) -> None:
    """Remove what would let a later --resume take an earlier run's parts for this one's."""
    for path in (Path(config['work_dir']) / LAST, _folder(config) / LAST, _result(config) / 'report.json'):
        path.unlink(missing_ok=True)
