#!/usr/bin/env bash
# bash run.sh [preset] [--option value ...]; `bash run.sh --help` lists the presets and the commands.
# Installs what it needs into .venv, once, unless the Python in use has it already.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

die() { printf 'run.sh: %s\n' "$*" >&2; exit 2; }

python="${PYTHON:-python3}"
command -v "$python" >/dev/null || die "no $python found: install Python 3.10 or newer, or set PYTHON=/path/to/it."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$python" --version) is too old: tinyr1 needs Python 3.10 or newer (set PYTHON=/path/to/it)."

# Whether the Python $1 has everything that the requirements file $2 pins.
satisfied() {
    "$1" - "$2" 2>/dev/null <<'PY'
import importlib.metadata, pathlib, sys
from pip._vendor.packaging.requirements import Requirement

def check(file):
    for line in pathlib.Path(file).read_text().splitlines():
        if line.startswith("-r "):
            check(pathlib.Path(file).with_name(line[3:]))
        elif line.strip():
            wanted = Requirement(line)
            if not wanted.marker or wanted.marker.evaluate():
                if not wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True):
                    sys.exit(1)

check(sys.argv[1])
PY
}

# Sets $python to an interpreter that has everything in the requirements file $1.
prepare() {
    satisfied "$python" "$1" && return
    local venv="$here/.venv"
    if [ ! -x "$venv/bin/python" ]; then
        echo "making $venv (once)"
        "$python" -m venv "$venv" || { rm -rf "$venv"; die "could not make $venv; on Debian and Ubuntu: apt install python3-venv."; }
    fi
    python="$venv/bin/python"
    satisfied "$python" "$1" && return
    echo "installing $(basename "$1") (once; a few hundred megabytes)"
    local build="${TORCH:-}" torch
    if [ -z "$build" ]; then
        build=default
        if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then build=cpu; fi
    fi
    torch="$(grep '^torch==' "$here/requirements.txt")"
    if [ "$build" = cpu ] && ! "$python" -c "import importlib.metadata as m; assert m.version('torch').startswith('${torch#torch==}')" 2>/dev/null; then
        "$python" -m pip install -q --no-deps --retries 1 --timeout 20 \
            --index-url https://download.pytorch.org/whl/cpu "$torch" >/dev/null 2>&1 ||
            echo "torch's CPU build cannot be downloaded; installing the default one, which may include CUDA's libraries"
    fi
    "$python" -m pip install -q --disable-pip-version-check -r "$1" ||
        die "the installation failed (see above). Check the network and run the same command again; it keeps what is installed."
}

case "${1:-}" in
-h | --help | help)
    cd "$here"
    exec "$python" -c 'from runtime.presets import help_text; print(help_text())'
    ;;
test)
    shift
    prepare "$here/requirements-dev.txt"
    cd "$here"
    # only the files that git tracks; all files if this is not a git repository
    sources=()
    while IFS= read -r file; do
        if [ -f "$file" ]; then sources+=("$file"); fi
    done < <(git ls-files '*.py' 2>/dev/null)
    if [ "${#sources[@]}" = 0 ]; then sources=(.); fi
    "$python" -m ruff check "${sources[@]}"
    "$python" -m ruff format --check "${sources[@]}"
    "$python" -m mypy
    exec "$python" -m pytest -q "$@"
    ;;
"" | --*)
    prepare "$here/requirements.txt"
    exec "$python" "$here/tinyr1.py" train mini "$@"
    ;;
*)
    prepare "$here/requirements.txt"
    if [ -f "$here/commands/${1//-/_}.py" ]; then exec "$python" "$here/tinyr1.py" "$@"; fi
    exec "$python" "$here/tinyr1.py" train "$@"
    ;;
esac
