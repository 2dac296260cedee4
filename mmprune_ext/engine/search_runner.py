"""One job of two parts: channels are searched, then the compact model is trained."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIMIZERS, PARAM_SCHEDULERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from mmprune_ext.algorithms import ChipNet
from mmprune_ext.compact.compact_model import load_units
from mmprune_ext.compact.export import CHECKPOINT, FOLDER, UNITS, without_pretrained
from mmprune_ext.engine.parts import LAST, export_end, place_in_folder, release, standing_alone
from mmprune_ext.errors import ConfigError
from mmprune_ext.nearest import nearest
from mmprune_ext.registry import MODELS, RUNNERS
from mmprune_ext.settings.completion import prepare_pruning

SEARCH = 'search'  # the section of a config, and the folder of the first part in that of the run


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
            ConfigError: If ``search`` is malformed, or the config names an optimizer, a schedule or a hook that does
                not exist.
        """
        cfg = copy.deepcopy(cfg)
        check_search(cfg)
        if _folder(cfg).exists() and not _folder(cfg).is_dir():
            raise ConfigError(f'{_folder(cfg)} is a file, where the search is to work; choose another work_dir')
        if cfg.get('resume') and cfg.get('load_from') and cfg.model.get('units') is None:
            cfg.model.units = cfg.load_from  # structure and weights of one checkpoint
        known = cfg.model.get('units')
        chosen = known is not None and load_units(known).has_choices
        if chosen or cfg.get('resume') and known is None and _is_done(cfg):
            part, later = training_part(cfg, chosen), None
        else:
            part, later = search_part(cfg), cfg
            check_types(cfg)
            check_types(part, f'{SEARCH}.')
        prepare_pruning(part)
        runner = super().from_cfg(part)
        runner.later = later
        return runner

    def train(self) -> nn.Module:
        """Train this part, then the other if this one was the search.

        Returns:
            The model of the last part.
        """
        if self.later is None:
            return super().train()
        if not self._resume:
            self.register_hook(_ForgetHook(self.later))
        super().train()
        written = export_end(self, standing_alone(self.later), _result(self.later))
        if written is not None:
            (Path(self.later.work_dir) / LAST).unlink(missing_ok=True)
            self.logger.info('search is over, compact model: %s\n%s', written.checkpoint, written.report.text())
        release(self)
        self.later.resume, self.later.load_from, self.later.model.units = False, None, None
        part = training_part(self.later)
        prepare_pruning(part)
        return Runner.from_cfg(part).train()


class _ForgetHook(Hook):
    """Remove what would let a later --resume take an earlier run's parts for this one's, once a search begins."""

    priority = 'LOWEST'  # after the checks of the others

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.files = [Path(config['work_dir']) / LAST, _folder(config) / LAST, _result(config) / 'report.json']

    def before_train(self, runner: Runner) -> None:
        """Remove the pointers to the last checkpoints, and what says that a search is done."""
        if is_main_process():
            for path in self.files:
                path.unlink(missing_ok=True)


def check_search(config: Mapping[str, Any]) -> None:
    """Check the section ``search`` of a config.

    Raises:
        ConfigError: If there is none, it has a key that no run has or only a part of a section, it trains nothing, or
            the model has nothing to search.
    """
    kind = MODELS.get(config['model'].get('type', '')) if isinstance(config['model'].get('type'), str) else None
    if kind is not None and not issubclass(kind, ChipNet):
        raise ConfigError(f'runner_type is SearchRunner, but the model is a {kind.__name__}, which searches nothing; '
                          'take runner_type and search out')
    search = config.get(SEARCH)
    if not isinstance(search, Mapping) or not isinstance(search.get('train_cfg'), Mapping):
        raise ConfigError('runner_type is SearchRunner, but the config does not say how long to search; set search='
                          'dict(train_cfg=dict(by_epoch=True, max_epochs=20, val_interval=1), optim_wrapper=...)')
    taken = set(inspect.signature(Runner.__init__).parameters) | set(config)
    taken -= {'self', 'model', 'work_dir', 'load_from', 'resume', 'cfg', 'experiment_name', SEARCH, 'runner_type'}
    for key in search:
        if key not in taken:
            near = nearest(key, taken, 1)
            raise ConfigError(f'search: a search has no setting "{key}"'
                              + (f'; did you mean {near[0]}?' if near else f'; it may have {", ".join(sorted(taken))}'))
    _check_whole(search)
    loop = search['train_cfg']
    by_iteration = 'max_iters' in loop
    length = loop.get('max_iters' if by_iteration else 'max_epochs')
    if type(length) is not int or length < 1:
        raise ConfigError('search.train_cfg: a search needs max_epochs (or max_iters) of at least 1, but got '
                          f'{length!r}')
    if not by_iteration and (loop.get('by_epoch') is False or 'IterBased' in str(loop.get('type'))):
        raise ConfigError('search.train_cfg: a search that counts iterations needs max_iters, but got max_epochs')
    if by_iteration and config['model'].get('by_epoch', True):
        raise ConfigError('search.train_cfg counts iterations, but the gates sharpen by epoch; set '
                          'model.by_epoch=False and model.step_freq to the iterations of a step')


def _check_whole(search: Mapping[str, Any]) -> None:
    """Check that sections of a search, each of which replaces the config's own, are not parts of one."""
    needed = {'train_dataloader': 'dataset', 'val_dataloader': 'dataset', 'optim_wrapper': 'optimizer'}
    parts = [(key, search.get(key), name) for key, name in needed.items()]
    parts += [(f'default_hooks.{name}', entry, 'type') for name, entry in (search.get('default_hooks') or {}).items()]
    for where, section, name in parts:
        if isinstance(section, Mapping) and section.get(name) is None:
            raise ConfigError(f'search.{where} has no "{name}": a section of search replaces the whole of the '
                              'config\'s own; give it whole')


def check_types(config: Mapping[str, Any], where: str = '') -> None:
    """Check what a part is built from; that of the second is else first asked for when the search is over.

    Raises:
        ConfigError: If an optimizer, schedule or hook is not registered.
    """
    wrapper = config.get('optim_wrapper') or {}
    schedules = config.get('param_scheduler') or []
    named = [(OPTIMIZERS, 'optim_wrapper.optimizer', wrapper.get('optimizer') or {}),
             *((PARAM_SCHEDULERS, 'param_scheduler', entry)
               for entry in (schedules if isinstance(schedules, list) else [schedules])),
             *((HOOKS, 'custom_hooks', entry) for entry in config.get('custom_hooks') or [])]
    for registry, key, entry in named:
        kind = entry.get('type') if isinstance(entry, Mapping) else None
        if not isinstance(kind, str):
            continue
        with registry.switch_scope_and_registry(None) as present:
            if present.get(kind) is None:
                raise ConfigError(f'{where}{key}: {kind} is not in the {registry.name} registry')


def search_part(config: Config) -> Config:
    """Return the config of the run that searches."""
    part = standing_alone(config)
    for key, value in config[SEARCH].items():
        part[key] = copy.deepcopy(value)
    place_in_folder(part, config, SEARCH)
    if config.get('resume') and part.model.get('units') is None:
        # Structure and weights of the checkpoint that mmengine is going to find there.
        path = find_latest_checkpoint(part.work_dir) if (_folder(config) / LAST).is_file() else None
        part.load_from = part.model.units = path
    return part


def training_part(config: Config, chosen: bool = False) -> Config:
    """Return the config of the run that trains the compact model.

    Args:
        config: Of both parts.
        chosen: Whether its ``units`` have the channels that stay. Otherwise a search has left them.
    """
    part = standing_alone(config)
    if chosen:
        return part
    if config.get('resume') and (Path(config.work_dir) / LAST).is_file():
        part.load_from = part.model.units = find_latest_checkpoint(config.work_dir)
        return part
    part.model.units = str(_result(config) / UNITS)
    part.load_from, part.resume = str(_result(config) / CHECKPOINT), False
    # All weights come from the search.
    part.model.checkpoint, part.model.architecture = None, without_pretrained(part.model.architecture)
    part.model.pop('init_cfg', None)
    return part


def _folder(config: Mapping[str, Any]) -> Path:
    return Path(config['work_dir']) / SEARCH


def _result(config: Mapping[str, Any]) -> Path:
    return _folder(config) / FOLDER


def _is_done(config: Mapping[str, Any]) -> bool:
    """Whether a search has been exported; the report is what an export writes last."""
    return (_result(config) / 'report.json').is_file()
