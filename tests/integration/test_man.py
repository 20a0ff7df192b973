# SPDX-License-Identifier: Apache-2.0
"""The manual pages say what the programs say: each option, key and default, and none besides."""
import pathlib
import re
import shutil
import subprocess

import pytest

import harness

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ROOT / "docs/man"
# Options that a page explains once, for all commands.
COMMON = {"--control", "--cert", "--key", "--ca", "--server-name", "--timeout", "--json", "--help"}


def source(page):
    return (PAGES / (page + ".scd")).read_text()


def help_of(program, *command):
    done = subprocess.run([harness.BUILD / "src" / program, *command, "--help"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=harness.DEADLINE_S)
    assert done.returncode == 0
    return done.stdout


def options_of_help(text):
    return set(re.findall(r"^  (--[a-z0-9-]+)", text, re.M))


def options_of_page(text):
    """Those that head a paragraph: "*--name* _ARG_, *--other*"."""
    return {option for line in text.splitlines() if line.startswith("*--")
            for option in re.findall(r"\*(--[a-z0-9-]+)\*", line)}


def defaults_of_daemon():
    """What "postcopyd --help" has in parentheses at the end of a line, by option."""
    return dict(re.findall(r"^  --([a-z0-9-]+) .*\((\S+)\)$", help_of("postcopyd/postcopyd"), re.M))


def defaults_of_page(text, head):
    """_Default: x_ of the paragraph that @head (a pattern with a group) begins."""
    found = {}
    for paragraph in text.split("\n\n"):
        name = re.match(head, paragraph)
        value = re.search(r"Default: +_(\S+)_$", paragraph, re.M)
        if name and value:
            found[name.group(1)] = value.group(1)
    return found


def same(said, written, where):
    missing, surplus = sorted(said - written), sorted(written - said)
    assert not missing and not surplus, "%s: missing %s; no longer there %s" % (
        where, missing or "nothing", surplus or "nothing")


@pytest.mark.parametrize("program, page", [
    ("postcopyd/postcopyd", "postcopyd.8"), ("minivmm/minivmm", "minivmm.1"),
    ("cloud_hypervisor/postcopy-cloud-hypervisor", "postcopy-cloud-hypervisor.1"),
    ("firecracker/postcopy-firecracker", "postcopy-firecracker.8"),
    ("qemu/postcopy-qemu", "postcopy-qemu.8")])
def test_each_option_is_in_the_page(program, page):
    same(options_of_help(help_of(program)), options_of_page(source(page)), page)


def test_the_daemons_defaults_are_in_both_pages():
    said = defaults_of_daemon()
    assert len(said) > 10
    assert defaults_of_page(source("postcopyd.8"), r"\*--([a-z-]+)\*") == said
    assert defaults_of_page(source("postcopyd.conf.5"), r"(?:# .*\n)?\*([a-z-]+)\*=") == said


def test_each_key_is_in_its_section_of_the_page():
    done = subprocess.run([harness.BUILD / "src/postcopyd/postcopyd", "--config", "/dev/null",
                           "--print-config"], capture_output=True, text=True, check=True)
    page = dict(re.findall(r"^# (\[\w+\])\n(.*?)(?=^# |\Z)", source("postcopyd.conf.5"), re.M | re.S))
    sections = re.findall(r"^(\[\w+\])\n(.*?)(?=^\[|\Z)", done.stdout, re.M | re.S)
    same({section for section, _ in sections}, set(page), "postcopyd.conf.5")
    for section, text in sections:
        keys = set(re.findall(r"^(?:# )?([a-z-]+)[=:]", text, re.M))
        same(keys, set(re.findall(r"^\*([a-z-]+)\*=", page[section], re.M)),
             "postcopyd.conf.5, " + section)


def test_each_command_and_its_options_are_in_the_page():
    commands = set(re.findall(r"^  ([a-z][a-z-]*) ", help_of("ctl/postcopyctl"), re.M))
    text = source("postcopyctl.1").partition("# COMMANDS\n")[2]
    page = dict(re.findall(r"^## ([a-z-]+)(?: \w+)*\n(.*?)(?=^##? |\Z)", text, re.M | re.S))
    same(commands, set(page), "postcopyctl.1")
    for command in sorted(commands):
        same(options_of_help(help_of("ctl/postcopyctl", command)) - COMMON,
             options_of_page(page[command]), "postcopyctl.1, " + command)


def test_each_function_is_in_the_page():
    header = (ROOT / "include/postcopy/postcopy.h").read_text()
    functions = set(re.findall(r"^POSTCOPY_API [^(]*?(\w+)\(", header, re.M))
    assert len(functions) > 10
    same(functions, set(re.findall(r"\*(postcopy_\w+)\*\(\)", source("libpostcopy.3"))),
         "libpostcopy.3")


@pytest.mark.parametrize("page", sorted(path.stem for path in PAGES.glob("*.scd")))
def test_the_page_is_formatted_without_a_warning(page, tmp_path):
    if not shutil.which("scdoc") or not shutil.which("man"):
        pytest.skip("scdoc or man is missing")
    with open(PAGES / (page + ".scd")) as text:
        formatted = subprocess.run(["scdoc"], stdin=text, capture_output=True, text=True)
    assert formatted.returncode == 0, formatted.stderr
    (tmp_path / page).write_text(formatted.stdout)
    shown = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", tmp_path / page],
                           stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert shown.returncode == 0 and not shown.stderr
    assert "NAME" in re.sub(".\b", "", shown.stdout)
