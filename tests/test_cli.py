"""The command as a shell sees it: what it imports, exit statuses, pipes, Ctrl-C; what all sub-commands share."""

import configparser
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from recording_files import write_edf

import neurolm_hf
from neurolm_hf.cli.console import Console, numbered, one_line, table
from neurolm_hf.cli.main import COMMANDS, main


REPOSITORY = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "matplotlib", "pandas", "scipy.signal", "datasets", "sklearn")


def process(*arguments, program=("-m", "neurolm_hf"), **options):
    """The command in a process of its own, started."""
    # as most shells leave it, standard output is buffered
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, *program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen(command, **pipes | options)


def imported(*arguments):
    """(what the command imports, of the heavy and numpy; its exit status)."""
    code = f"""
import sys
from neurolm_hf.cli.main import main
status = main(sys.argv[1:])
print(*[name for name in {(*HEAVY, "numpy")} if name in sys.modules], status, sep=",", file=sys.stderr)
"""
    done = process(*arguments, program=("-c", code))
    _, err = done.communicate()
    *names, status = err.splitlines()[-1].split(",")
    return set(names), int(status)


# --- start-up


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["nonsense"], *([name, "--help"] for name in COMMANDS), ["ask", "x"]]
)
def test_nothing_heavy_is_imported_to_help(arguments):
    wrong = arguments in (["nonsense"], ["ask", "x"])
    assert imported(*arguments) == (set(), 2 if wrong else 0)


def test_nothing_heavy_is_imported_to_look_at_a_file(tmp_path):
    assert imported("info", write_edf(tmp_path / "a.edf")) == ({"numpy"}, 0)


def test_wrong_usage_is_found_before_anything_is_imported(tmp_path):
    file = write_edf(tmp_path / "a.edf")
    for arguments in (
        ["ask", tmp_path, file, "--answer", "Yes"],
        ["ask", tmp_path, file, "--example", "Yes"],
        ["tokens", file, "--model", tmp_path, "--output", "a.txt"],
        ["report", tmp_path, "--output", "a"],
        ["convert", "--output", "a"],
    ):
        assert imported(*arguments) == (set(), 2), arguments


# --- as a shell sees it


def test_the_entry_point_is_this_command():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    name, _, place = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    assert name == "neurolm"
    assert EntryPoint(name, place, "console_scripts").load() is main


def test_exit_statuses_and_streams(tmp_path):
    good, bad = write_edf(tmp_path / "good.edf"), tmp_path / "bad.edf"
    bad.write_text("no")
    for arguments, status, to_out, to_err in (
        (["--version"], 0, f"neurolm_hf {neurolm_hf.__version__}\n", ""),
        (["info", good, "--json"], 0, '{"path": ', ""),
        (["info", bad, good], 1, f"{good}\n", f"neurolm info: error: {bad} is not a valid EDF file"),
        (["inspect"], 2, "", "usage: neurolm COMMAND"),
    ):
        done = process(*arguments)
        out, err = done.communicate()
        assert done.returncode == status
        assert (out.startswith(to_out), err.startswith(to_err)) == (True, True), (out, err)
        assert not (out and not to_out)
        assert not (err and not to_err)


def test_a_reader_that_has_enough_is_no_error(tmp_path):
    files = [write_edf(tmp_path / f"{number}.edf") for number in range(40)]
    running = process("info", *files)
    assert running.stdout.readline() == f"{files[0]}\n"
    running.stdout.close()
    assert running.wait(timeout=60) == 141
    assert running.stderr.read() == ""


def test_help_into_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    running = process("--help", stdout=writer)
    os.close(writer)
    assert running.wait(timeout=60) == 141
    assert running.stderr.read() == ""


def test_ctrl_c_stops_without_a_trace(tmp_path):
    # a recording that never ends: reading waits for its first bytes
    pipe = tmp_path / "night.edf"
    os.mkfifo(pipe)
    running = process("info", pipe)
    with open(pipe, "wb"):
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
    assert running.stderr.read().strip() == "neurolm: stopped"
    assert running.stdout.read() == ""


# --- what all commands share


def test_the_overview_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, module in COMMANDS.items():
        assert f"    neurolm {name} " in out
        assert module.HELP.split()[0] in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_exit_statuses_and_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"    neurolm {name} " in out
    assert "\nExit status: 0 " in out
    assert max(map(len, out.splitlines())) <= 80
    assert ("--json" in out) == (name != "report")
    if name != "report":
        assert "Fields of --json" in out


def test_options_are_not_abbreviated(capsys):
    assert main(["info", "a.edf", "--js"]) == 2
    assert "unrecognized arguments: --js" in capsys.readouterr().err


def test_one_bad_file_does_not_stop_the_rest(capsys):
    console, done = Console("neurolm try", as_json=True), []

    def work(file, number):
        if file == "b":
            raise ValueError("it is\nno good")
        done.append((file, number))

    console.each(["a", "b", "c"], work)
    out, err = capsys.readouterr()
    assert (done, console.status) == ([("a", 1), ("c", 3)], 1)
    assert err == "neurolm try: error: b: it is no good\n"
    assert json.loads(out) == {"path": "b", "error": "b: it is no good"}


def test_mistakes_of_ours_keep_their_trace():
    def work(file, number):
        raise KeyError(file)

    with pytest.raises(KeyError):
        Console("neurolm try").each(["a"], work)


def test_warnings_are_lines_without_code(tmp_path, capsys, monkeypatch):
    def inspect(path):
        warnings.warn("an old way", DeprecationWarning, stacklevel=1)
        warnings.warn("flat\nchannels", UserWarning, stacklevel=1)
        raise ValueError("no more")

    monkeypatch.setattr("neurolm_hf.inspection.inspect_recording", inspect)
    assert main(["info", "a.edf"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "neurolm info: warning: flat channels",
        "neurolm info: error: a.edf: no more",
    ]


def test_progress_is_for_terminals(capsys, monkeypatch):
    console = Console("neurolm try")
    console.progress("reading")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    console.progress("a" * 30)
    console.error("gone")
    err = capsys.readouterr().err
    assert err == f"{'a' * 19}\r{' ' * 19}\rneurolm try: error: gone\n"


def test_names_of_several_outputs():
    assert str(numbered("x/night.png", 1, 1, ".png")) == "x/night.png"
    assert str(numbered("x/night-annot.fif", 2, 3, "-annot.fif")) == "x/night-2-annot.fif"


def test_tables_are_aligned():
    assert table([["name", "n"], ["a", "10"], ["longer", "9"]]) == ["name     n", "a       10", "longer   9"]


def test_messages_name_the_file_once():
    assert one_line(ValueError("a.edf has\n no samples."), "a.edf") == "a.edf has no samples."
    assert one_line(OSError("gone"), "a.edf") == "a.edf: gone"
    assert one_line(FileNotFoundError(2, "No such file", "b.json"), "a.edf") == "a.edf: b.json: No such file"
    assert one_line(ValueError(), "a.edf") == "a.edf: ValueError"
