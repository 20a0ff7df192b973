# SPDX-License-Identifier: Apache-2.0
"""The release before, N-1: its programs, built from this repository's own history.

It is a commit and no tag, for a tag does not reach everybody who clones. POSTCOPYD_PREVIOUS names another
one, to try what works with it.
"""
import fcntl
import os
import pathlib
import shutil
import subprocess

import harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Page stream 3, record 3, VMM protocol 1; the first whose ends pass over what they don't know.
COMMIT = os.environ.get("POSTCOPYD_PREVIOUS", "0628f8596820b091fac65fc1e00f910f3abcb8e8")
PROGRAMS = ["src/postcopyd/postcopyd", "src/ctl/postcopyctl", "src/minivmm/minivmm"]
# What the tests need and no more: it is built once, and counts in the time of each whole run.
SETUP = ["-Dtests=disabled", "-Dman=disabled", "-Dbpf=disabled", "-Dusdt=disabled", "-Ddebug=false"]


class Missing(Exception):
    """There is no release before to be had here; the text says why."""


def run(*command):
    """Where it fails what it has said is raised."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise harness.Failure("%s: %s" % (" ".join(map(str, command)), done.stdout[-4000:]))


def check_history():
    try:
        run("git", "cat-file", "-e", COMMIT + "^{commit}")
    except (harness.Failure, OSError) as error:
        raise Missing("the release before is not in this clone (git fetch --unshallow): %s" %
                      str(error).strip()) from None


def compile_at(directory):
    source = directory / "source"
    shutil.rmtree(directory, ignore_errors=True)
    source.mkdir(parents=True)
    run("git", "archive", "--output", directory / "source.tar", COMMIT)
    run("tar", "-x", "-f", directory / "source.tar", "-C", source)
    run("meson", "setup", directory / "build", source, *SETUP)
    run("ninja", "-C", directory / "build", *PROGRAMS)


def build():
    """Once, whoever else wants it. Return: the folder that is as harness.BUILD, of the release before."""
    directory = harness.BUILD / ("previous-%.12s" % COMMIT)
    done = directory / "done"
    with open(harness.BUILD / "previous.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            check_history()
            compile_at(directory)
            done.touch()
    return directory / "build"
