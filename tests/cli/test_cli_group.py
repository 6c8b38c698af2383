"""The command group: laziness, errors, exit codes."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from moesim import __version__
from moesim.base.errors import ResultError, UsageError
from moesim.cli import COMMANDS, main
from moesim.cli.group import Lazy, LazyGroup, debug_option

HEAVY = ("numpy", "matplotlib", "pydantic", "yaml", "networkx", "scipy", "numba", "simpy", "rich", "jinja2")


def invoke(*words, group=main):
    return CliRunner().invoke(group, words)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["nothing-of-the-sort"]])
def test_help_imports_no_heavy_library(words):
    code = (
        "import sys\nfrom moesim.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: []\n")


def test_help_has_one_line_for_every_command():
    text = invoke("--help").stdout
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.line in text


def test_version():
    assert invoke("--version").stdout == f"moesim, version {__version__}\n"


def test_an_unknown_command_gets_a_suggestion():
    result = invoke("chekc")
    assert result.exit_code == 2
    assert "there is no command 'chekc'; did you mean 'check'?" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_line_in_the_help_is_the_command_s_own(name):
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command.get_short_help_str(limit=200) == COMMANDS[name].line
    assert invoke(name, "--help").exit_code == 0


# errors


def failing(error):
    @click.group(cls=LazyGroup, params=[debug_option()])
    def group():
        pass

    @group.command()
    def fail():
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("that does not fit"), 2, "Error: that does not fit\n"),
        (ResultError("cannot write"), 1, "Error: cannot write\n"),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 2, "Error: x.yaml: no such file or directory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_errors_become_messages_and_exit_codes(error, code, message):
    result = invoke("fail", group=failing(error))
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_a_defect_is_called_one():
    result = invoke("fail", group=failing(KeyError("x")))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: KeyError: 'x'\nThis is a defect of moesim or of a plug-in")
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code():
    result = invoke("--debug", "fail", group=failing(UsageError("that does not fit")))
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("Error: that does not fit\n")


@pytest.mark.parametrize(
    "words", [("--debug", "check", "/nowhere/x.yaml"), ("check", "--debug", "/nowhere/x.yaml"), ("check", "/nowhere/x.yaml", "--debug")]
)
def test_debug_is_accepted_before_and_after_the_command(words):
    result = invoke(*words)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "Traceback" not in invoke(*(word for word in words if word != "--debug")).stderr


def test_lazy_groups_inside_take_debug_too(monkeypatch, tmp_path):
    (tmp_path / "lazy_inner.py").write_text(
        "import click\n@click.group()\ndef command():\n    pass\n@command.command()\ndef fail():\n    raise ValueError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    group = LazyGroup(name="outer", lazy={"inner": Lazy("lazy_inner:command", "A line.")})
    assert "Traceback" in invoke("inner", "fail", "--debug", group=group).stderr
    assert invoke("inner", "fail", group=group).stderr.startswith("Error: ValueError: x")
    assert "A line." in invoke("--help", group=group).stdout


def test_a_closed_pipe_is_no_complaint():
    code = "from moesim.cli import main; main(['schema'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert errors == b""


def test_a_stream_that_takes_no_more_is_a_failed_run_and_a_file_is_bad_input():
    from moesim.cli.group import explain

    assert explain(OSError(28, "No space left on device")) == (1, "Error: cannot print the result: no space left on device")
    assert explain(PermissionError(13, "Permission denied", "x.yaml")) == (2, "Error: x.yaml: permission denied")
