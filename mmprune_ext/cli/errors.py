"""Errors that a user can mend: one message and an exit code of their own."""

from __future__ import annotations

import contextlib
import linecache
import os
import pickle
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import mmprune_ext
from mmprune_ext.errors import PruningError
from mmprune_ext.nearest import did_you_mean
from mmprune_ext.trust import FLAG, refused_name

SCOPE = 'mmprune_ext'  # of this package's registries, which take long to import


@contextlib.contextmanager
def user_errors(kept: str = '') -> Iterator[None]:
    """Turn errors that a user can mend into one message on stderr and an exit code, mostly 2.

    What is raised from input (:class:`PruningError`) is shown as it is. Errors of the libraries that
    configs and data commonly cause are shown with their type; anything else keeps its traceback.

    Args:
        kept: What an interrupt leaves of the work, to be told then.
    """
    try:
        yield
    except PruningError as error:
        fail(str(error), error.exit_code)
    except pickle.UnpicklingError as error:  # in a library's own reading of a checkpoint
        name = refused_name(error)
        if name is None:
            raise
        fail(f'a checkpoint that the config names holds more than weights, {name}, which may run code when it is read; '
             f'if you trust where it is from, give {FLAG}')
    except URLError as error:
        fail(f'a download failed: {error.reason}; fetch the file by hand and name its path, or go without '
             '(init_cfg=None)')
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        fail(f'{error.filename or ""}: {error.strerror or error}')
    except KeyError as error:
        # A registry reports a name that it does not know as KeyError, with a long text.
        text = str(error.args[0]) if error.args else ''
        if ' is not in the ' in text:
            fail(' '.join(text.split('. Please check')[0].split()) + _registered_near(text))
        _fail_if_built_from_config(error)
        raise
    except BrokenPipeError:
        # The reader of a pipe (head) has enough; Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        fail('; '.join(filter(None, [f'interrupted {error}'.strip(), kept])), 130)
    except Exception as error:
        if _was_interrupted(error):
            fail('; '.join(filter(None, ['interrupted', kept])), 130)
        _fail_if_built_from_config(error)
        raise


def _registered_near(text: str) -> str:
    """Return the registered names that are nearest to one that a registry does not know, by its message."""
    match = re.match(r'(\S+) is not in the (\S+)::(.+?) registry', ' '.join(text.split()))
    if match is None:
        return ''
    from mmengine import registry as mmengine_registry
    roots = [root for root in vars(mmengine_registry).values()
             if isinstance(root, mmengine_registry.Registry) and root.name == match[3]]
    default = mmengine_registry.DefaultScope.get_current_instance()
    scopes = {match[2], default.scope_name if default else ''}
    known = [name if each.scope in scopes - {SCOPE} else f'{each.scope}.{name}'
             for root in roots for each in (root, *root.children.values()) for name in each.module_dict]
    name = match[1] if '.' in match[1] or match[2] != SCOPE else f'{SCOPE}.{match[1]}'
    return did_you_mean(name, known)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error stands for an interrupt: mmengine takes any that comes while it formats a config for its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail_if_built_from_config(error: Exception) -> None:
    """End with a message if a config asked for an object with arguments that it does not take.

    What fails in this package while such an object is built, other than in a network's own
    constructor, is a defect here and not there.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    builders = [i for i, frame in enumerate(frames) if frame.f_code.co_name == 'build_from_cfg']
    if not builders:
        return
    package = Path(mmprune_ext.__file__).parent
    for frame in frames[builders[-1] + 1:]:
        path = Path(frame.f_code.co_filename)
        if package in path.parents and path.parent.name != 'models':
            return
    place = next((i for i in reversed(builders) if frames[i].f_locals.get('obj_type')), builders[0])
    name = frames[place].f_locals.get('obj_type')
    text = ' '.join(str(error).split())[:300]
    part = '' if place == builders[-1] else f' (in "{_caller(error, builders[-1])}")'
    fail(f'{getattr(name, "__name__", name)} cannot be built from the config: '
         f'{type(error).__name__}: {text}{part}')


def _caller(error: Exception, builder: int) -> str:
    """Return the line of code that asked for an object: it names the part that is wrong."""
    steps = list(traceback.walk_tb(error.__traceback__))
    library = Path(steps[builder][0].f_code.co_filename).parent
    for frame, line in reversed(steps[:builder]):
        if Path(frame.f_code.co_filename).parent != library:
            return linecache.getline(frame.f_code.co_filename, line).strip()
    return ''


def fail(message: str, code: int = PruningError.exit_code) -> None:
    """Print one message and leave."""
    print(f'error: {message}', file=sys.stderr)
    raise SystemExit(code)
