import pytest

from musiclm_jax.cli.main import main


def run(*args, capsys):
    """(status, stdout, stderr) of `musiclm *args`, in this process."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return exit_info.value.code or 0, captured.out, captured.err
