"""No table of README and docs waits for a measurement."""

from tests.test_docs.commands import PAGES

MARKER = 'TODO-' + 'MEASURE'


def test_every_number_has_been_measured():
    waiting = [f'{path.name}:{number}: {line}' for path in PAGES
               for number, line in enumerate(path.read_text().splitlines(), 1) if MARKER in line]
    assert not waiting, '\n'.join(['measure and fill in:', *waiting])
