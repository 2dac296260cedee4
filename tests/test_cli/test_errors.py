"""What a user sees of an error, and what stays a defect."""
import pytest

from mmprune_ext.cli.errors import user_errors
from mmprune_ext.errors import ConfigError, StepError


@pytest.mark.parametrize(('error', 'code', 'text'), [
    (ConfigError('config a.py: no such file'), 2, 'error: config a.py: no such file\n'),
    (StepError('step 2 ended with exit code 3', 3), 3, 'error: step 2 ended with exit code 3\n'),
    (FileNotFoundError(2, 'No such file or directory', 'b.json'), 2, 'error: b.json: No such file or directory\n'),
    (KeyboardInterrupt(), 130, 'error: interrupted\n'),
])
def test_one_line_and_an_exit_code(error, code, text, capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert (ended.value.code, capsys.readouterr().err) == (code, text)


def test_an_interrupt_that_a_library_took_for_an_error_of_its_own(capsys):
    """mmengine, while it formats a config."""
    with pytest.raises(SystemExit) as ended, user_errors():
        try:
            raise KeyboardInterrupt
        except BaseException:
            raise SyntaxError('Failed to format the config file')  # noqa: B904  as it stands there
    assert (ended.value.code, capsys.readouterr().err) == (130, 'error: interrupted\n')


@pytest.mark.parametrize('error', [KeyError('x'), ValueError('y')])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)), user_errors():
        raise error
