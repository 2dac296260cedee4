"""The rooms of the package: who may import whom, how large they are, and that the tests mirror them."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmprune_ext'
# A room may use those before it; the ones of one line do not know each other. An inner room stands after
# its outer one, but for one that this builds on. The `__init__` of a room that has inner ones shows what is in them
# too, and counts to the last.
ORDER = [
    ['errors', 'nearest'], ['atomic', 'draws', 'trust', 'paths', 'version', 'model_config'], ['__init__'],
    ['registry'],
    ['scores'],
    ['ops'], ['sizes'],
    ['units.parameters', 'units.passes'], ['units'], ['units.kinds'], ['units.checking', 'units.cache'],
    ['units.tracing'],
    ['models', 'datasets'],
    ['analysis'],
    ['targets'],
    ['mutators'],
    ['compact'],
    ['repair'],
    ['algorithms'],
    ['settings'],
    ['distillation'],
    ['deploy'],
    ['evaluation'],
    ['workflows'],
    ['engine'],
    ['cli'], ['cli.commands'],
    ['__main__'],
]
LEVELS = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
MAX_LINES, MAX_FILES = 400, 14
# Folders of tests that are of no room: the tools end to end, every method on every task, the pages.
BESIDE_ROOMS = {'test_tools', 'test_matrix', 'test_docs'}


def sources(package: Path) -> dict[str, Path]:
    """Return the files of a package by module, without the package's own name; a room is its `__init__`."""
    found = {}
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package).with_suffix('').parts
        found['.'.join(parts[:-1] if len(parts) > 1 and parts[-1] == '__init__' else parts)] = path
    return found


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of a file, those inside functions too, and none that serve type hints alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
            for statement in child.orelse:
                yield from import_nodes(ast.Module([statement], []))
        else:
            yield from import_nodes(child)


def imports(package: Path) -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports."""
    modules = sources(package)
    found = {}
    for module, path in modules.items():
        names = set()
        folder = path.relative_to(package.parent).parent.parts
        for node in import_nodes(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
                continue
            above = folder[:len(folder) - node.level + 1] if node.level else ()
            names.update('.'.join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        targets = {_module(name, package.name, modules) for name in names}
        found[module] = targets - {'', module}
    return found


def _module(name: str, package: str, modules: dict[str, Path]) -> str:
    """Return the module of the package that an imported name is, or lies in; empty if it is none of its."""
    top, _, rest = name.partition('.')
    if top != package:
        return ''
    while rest and rest not in modules:
        rest = rest.rpartition('.')[0]
    return rest or '__init__'


def room_of(module: str) -> str:
    """Return the room that a module lies in."""
    inner = [room for room in LEVELS if room.startswith(f'{module}.')]
    if inner:
        return inner[-1]
    while module and module not in LEVELS:
        module = module.rpartition('.')[0]
    return module


def upward(package: Path) -> list[str]:
    """Return the imports that do not go downward, and modules that are in no room."""
    found = []
    for module, targets in imports(package).items():
        room = room_of(module)
        if not room:
            found.append(f'{module} is in no room')
            continue
        for target in sorted(targets):
            other = room_of(target)
            if other != room and (not other or LEVELS[other] >= LEVELS[room]):
                found.append(f'{module} imports {target}')
    return found


def circles(package: Path) -> list[str]:
    """Return the modules that import themselves in the end."""
    graph = imports(package)
    found = []
    for start in graph:
        seen, pending = set(), list(graph[start])
        while pending:
            module = pending.pop()
            if module not in seen:
                seen.add(module)
                pending += graph[module]
        if start in seen:
            found.append(start)
    return found


def too_long(package: Path) -> list[str]:
    """Return the files of too many lines."""
    return [module for module, path in sources(package).items() if len(path.read_text().splitlines()) > MAX_LINES]


def too_full(package: Path) -> list[str]:
    """Return the folders of too many files."""
    folders = [package, *(path for path in package.rglob('*') if path.is_dir())]
    return [folder.name for folder in folders if len(list(folder.glob('*.py'))) > MAX_FILES]


def not_mirrored(package: Path, tests: Path) -> list[str]:
    """Return the folders of tests without a room, and the rooms without a folder of tests."""
    rooms = {f'test_{path.name}' for path in package.iterdir() if (path / '__init__.py').is_file()}
    folders = {path.name for path in tests.glob('test_*') if any(path.glob('test_*.py'))}
    return sorted((folders - BESIDE_ROOMS) ^ rooms)


@pytest.mark.parametrize('rule', [upward, circles, too_long, too_full])
def test_package(rule):
    assert rule(PACKAGE) == []


def test_tests_mirror_the_rooms():
    assert not_mirrored(PACKAGE, ROOT / 'tests') == []


def test_every_room_of_the_order_is_there():
    modules = sources(PACKAGE)
    assert [room for room in LEVELS if room not in modules] == []


GOOD = {'__init__.py': 'from .version import v', 'version.py': 'v = 1', 'errors.py': '',
        'units/__init__.py': 'from mmprune_ext.units.tracing.trace import t', 'units/unit.py': '',
        'units/tracing/__init__.py': '', 'units/tracing/trace.py': 'from mmprune_ext.units import unit\nt = 1',
        'analysis/__init__.py': '', 'analysis/tables.py': 'from mmprune_ext.units import t',
        'cli/__init__.py': '', 'cli/main.py': 'import mmprune_ext\nfrom mmprune_ext.analysis import tables'}
HINT = 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mmprune_ext.cli import main\n'


def write(root: Path, files: dict[str, str]) -> Path:
    """Write a package of these files, with a folder of tests for each room."""
    for name, text in {**GOOD, **files}.items():
        path = root / 'mmprune_ext' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        room = path.relative_to(root / 'mmprune_ext').parts[0]
        if not room.endswith('.py'):
            (root / 'tests' / f'test_{room}').mkdir(parents=True, exist_ok=True)
            (root / 'tests' / f'test_{room}' / 'test_it.py').touch()
    return root / 'mmprune_ext'


@pytest.mark.parametrize(('rule', 'files', 'expected'), [
    (upward, {}, []),
    (upward, {'units/unit.py': HINT}, []),
    (upward, {'units/unit.py': HINT.replace('if TYPE_CHECKING', 'if True')}, ['units.unit imports cli.main']),
    (upward, {'units/unit.py': 'def f():\n    import mmprune_ext.analysis.tables'},
     ['units.unit imports analysis.tables']),
    (upward, {'units/unit.py': 'from ..analysis import tables'}, ['units.unit imports analysis.tables']),
    (upward, {'units/unit.py': 'from .tracing.trace import t'}, ['units.unit imports units.tracing.trace']),
    (upward, {'units/__init__.py': 'from .. import cli'}, ['units imports cli']),
    (upward, {'models/__init__.py': '', 'datasets/__init__.py': 'from mmprune_ext.models import x'},
     ['datasets imports models']),
    (upward, {'utils.py': ''}, ['utils is in no room']),
    (circles, {}, []),
    (circles, {'units/unit.py': 'def f():\n    from mmprune_ext.units.spec import g',
               'units/spec.py': 'from mmprune_ext.units.unit import f'}, ['units.spec', 'units.unit']),
    (circles, {'units/unit.py': 'from mmprune_ext.units import t'}, ['units', 'units.tracing.trace', 'units.unit']),
    (too_long, {'errors.py': '\n' * 400}, []),
    (too_long, {'errors.py': '\n' * 401}, ['errors']),
    (too_full, {f'units/tracing/m{i}.py': '' for i in range(12)}, []),
    (too_full, {f'units/tracing/m{i}.py': '' for i in range(13)}, ['tracing']),
], ids=lambda value: getattr(value, '__name__', None) or str(value)[:40])
def test_a_break_is_noticed(tmp_path, rule, files, expected):
    assert rule(write(tmp_path, files)) == expected


def test_a_missing_mirror_is_noticed(tmp_path):
    package = write(tmp_path, {})
    assert not_mirrored(package, tmp_path / 'tests') == []
    (tmp_path / 'tests' / 'test_cli' / 'test_it.py').unlink()
    (tmp_path / 'tests' / 'test_utils').mkdir()
    (tmp_path / 'tests' / 'test_utils' / 'test_it.py').touch()
    assert not_mirrored(package, tmp_path / 'tests') == ['test_cli', 'test_utils']
