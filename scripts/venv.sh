# Sourced by the other scripts: `make_venv STAMP PIP-ARGUMENTS...` makes .venv in the repository and installs into it,
# unless the same was installed already and pyproject.toml has not changed since. PYTHON names the interpreter.

make_venv() {
    local stamp=".venv/installed-$1" python="${PYTHON:-python3}"
    shift
    if ! command -v "$python" > /dev/null; then
        echo "error: '$python' is not there; install Python 3.10 or newer: apt-get install python3 python3-venv" >&2
        return 4
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "error: $("$python" --version) is too old; set PYTHON to Python 3.10 or newer" >&2
        return 4
    fi
    if ! command -v "${CXX:-g++}" > /dev/null && ! command -v clang++ > /dev/null; then
        echo "error: no C++ compiler; it links the compiled models: apt-get install g++" >&2
        return 4
    fi
    if [ ! -x .venv/bin/python ]; then
        if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
            echo "error: '$python' has no venv module: apt-get install python3-venv" >&2
            return 4
        fi
        echo "making .venv" >&2
        "$python" -m venv .venv || return 4
    fi
    if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        echo "installing into .venv: $*" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" || return 4
        touch "$stamp"
    fi
}

# `link_package FOLDER` makes FOLDER/sparsetvm look like the installed package: schedules/ and tuning_logs/ stand beside
# sparsetvm/ here and inside it once installed, which a type checker cannot know.
link_package() {
    rm -rf "$1" && mkdir -p "$1/sparsetvm" || return
    local entry
    for entry in sparsetvm/* schedules tuning_logs; do
        [ "${entry##*/}" = __pycache__ ] || ln -s "$PWD/$entry" "$1/sparsetvm/"
    done
}
