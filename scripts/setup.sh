#!/bin/sh
# Makes .venv and installs pacs_ai into it, saying what it does. No root; nothing outside this folder but pip's cache.
#   scripts/setup.sh run     what the node needs
#   scripts/setup.sh dev     tests and checks as well
# PYTHON: the interpreter (default python3). PIP_OPTIONS: more options for pip install.
set -eu

kind=${1:-run}
python=${PYTHON:-python3}
venv=.venv

stop() {
    printf '\n%s\n' "$1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    stop "There is no $python. On Debian or Ubuntu: apt install python3 python3-venv (or name another: make setup PYTHON=...)"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "$python is Python $version; pacs_ai needs 3.11 or later. Name one: make setup PYTHON=python3.11"
"$python" -c 'import venv, ensurepip' >/dev/null 2>&1 ||
    stop "Python $version has no venv module. On Debian or Ubuntu: apt install python$version-venv (or python3-venv)"

options=${PIP_OPTIONS:-}
if [ ! -x "$venv/bin/python" ]; then
    echo "Setting up: a virtual environment in $venv with Python $version."
    "$python" -m venv "$venv"
fi
if "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
    echo "Setting up: bringing what is in $venv up to date."
else
    echo "Setting up: downloading about 450 MB (600 MB for the tests), of it torch for CPU 190 MB; 2.3 GB on the disk."
    if [ "$(uname -sm)" = "Linux x86_64" ] && [ -z "$options" ] && ! ls /dev/nvidia[0-9]* >/dev/null 2>&1; then
        echo "  This machine shows no NVIDIA GPU, and PyPI's torch for Linux brings about 3 GB of CUDA libraries."
        echo "  To leave them out, stop (Ctrl-C) and name the CPU wheel index of pytorch.org's install page:"
        echo "      make ${MAKE_GOAL:-demo} PIP_OPTIONS=\"--extra-index-url <the CPU wheel index>\""
    fi
fi

target='.[ecg,fast]'
[ "$kind" = dev ] && target='.[dev]'

# unpacking is silent in older pips: say every ten seconds that it goes on
begun=$(date +%s)
(
    while sleep 10 >/dev/null 2>&1; do  # it may outlive us: not with our output in its hands
        echo "  ... setting up, $(($(date +%s) - begun)) s so far"
    done
) &
beat=$!
trap 'kill "$beat" 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM

# shellcheck disable=SC2086  # PIP_OPTIONS is a list of options
"$venv/bin/python" -m pip install --disable-pip-version-check $options -c constraints.txt -e "$target" || stop \
    "pip could not install everything; its last lines say why. Behind a proxy: set https_proxy. Then run make again."

touch "$venv/.installed"
[ "$kind" = dev ] && touch "$venv/.installed-dev"
echo "Setting up: done in $(($(date +%s) - begun)) s."
