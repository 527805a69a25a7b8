#!/bin/sh
# Runs a program of this folder where no more is installed than a driver and a Python with PyTorch: see --help.
set -eu

usage() {
    cat <<END
usage: $0 [-n RANKS] [--run PROGRAM] ARGUMENTS...

ARGUMENTS go to mp-cli, or to another PROGRAM of bin/: on RANKS ranks of the Open MPI in this folder, or, without -n, to
one process alone. For example: $0 doctor, or $0 -n 4 verify

libtorch is that of PyTorch @LIBTORCH@:
  MP_TORCH   the folder of the package torch, or of a libtorch; unset: a Python is asked
  MP_PYTHON  the Python; unset: python3
Where the Python has no PyTorch, LD_LIBRARY_PATH is looked through.
END
}

fail() {
    echo "mp: $1" >&2
    exit 2
}

# The folder of a libtorch that the loader is told of, if any.
told_loader() {
    rest=${LD_LIBRARY_PATH:-}:
    while [ -n "$rest" ]; do
        folder=${rest%%:*} rest=${rest#*:}
        [ -z "$folder" ] || [ ! -e "$folder/libtorch_cpu.so" ] || { dirname "$folder"; return; }
    done
}

here=$(dirname "$(readlink -f "$0")")
ways="set MP_PYTHON to a Python that has PyTorch @LIBTORCH@, or MP_TORCH to the folder of its package torch"
ranks= program=mp-cli
while [ $# -gt 0 ]; do
    case $1 in
    -n) ranks=${2:-}
        case $ranks in '' | 0 | *[!0-9]*) fail "-n ${ranks:-(nothing)}: a number of ranks is needed" ;; esac
        shift 2 ;;
    --run) program=${2:-}
        [ -n "$program" ] || fail "--run (nothing): a program of bin/ is needed"
        shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) break ;;
    esac
done
[ -f "$here/bin/$program" ] || fail "--run $program: bin/ has $(cd "$here/bin" && echo *)"
# Some ways of copying a folder drop what may be run.
for file in "$here/bin/$program" "$here"/openmpi/bin/*; do
    [ -x "$file" ] || chmod +x "$file" 2>/dev/null ||
        fail "$file may not be run, and nothing can be changed there: copy the bundle to a folder of your own"
done

python=$(command -v "${MP_PYTHON:-python3}" 2>/dev/null) || python=
torch=${MP_TORCH:-}
if [ -z "$torch" ] && [ -n "$python" ]; then
    # Not imported, which takes seconds; and not from the folder that this is started in.
    code='import sys
sys.path = [folder for folder in sys.path if folder]
from importlib.util import find_spec
found = find_spec("torch")
print(found.submodule_search_locations[0] if found else "")'
    torch=$("$python" -c "$code") || fail "$python does not run: $ways"
fi
[ -n "$torch" ] || torch=$(told_loader)
if [ -z "$torch" ]; then
    [ -n "$python" ] || fail "no ${MP_PYTHON:-python3} to ask for libtorch: $ways"
    fail "$python has no PyTorch: $ways"
fi
[ -e "$torch/lib/libtorch_cpu.so" ] || fail "$torch has no lib/libtorch_cpu.so: $ways"
if [ -e "$torch/version.py" ]; then
    version=$(sed -n "s/^__version__ = ['\"]\([^'\"]*\)['\"].*/\1/p" "$torch/version.py")
elif [ -e "$torch/build-version" ]; then
    version=$(cat "$torch/build-version")
else
    fail "$torch names no version (version.py or build-version): $ways"
fi
[ "${version%%+*}" = "@LIBTORCH@" ] || fail "$torch is PyTorch $version, and @LIBTORCH@ is needed: $ways"
# The name of a function that programs here call, with strings as the newer C++ ABI has them.
grep -qF "@SYMBOL@" "$torch/lib/libc10.so" ||
    fail "$torch is built with the older C++ ABI, which these programs cannot be linked to: $ways"

libraries=$here/openmpi/lib:$torch/lib
for folder in "$torch"/../nvidia/*/lib; do
    [ ! -d "$folder" ] || libraries=$libraries:$folder
done
export LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OPAL_PREFIX="$here/openmpi" PRTE_PREFIX="$here/openmpi" PMIX_PREFIX="$here/openmpi"
# Open MPI looks for settings at home, and does not start without one.
export HOME="${HOME:-${TMPDIR:-/tmp}}"
@DEFAULTS@
# Reading a peer's memory is often forbidden in containers, and Open MPI finds out too late.
if [ -z "${OMPI_MCA_smsc:-}" ]; then
    [ -n "$python" ] && "$python" "$here/openmpi/probe.py" >/dev/null 2>&1 || export OMPI_MCA_smsc="^cma"
fi
[ -n "$ranks" ] || exec "$here/bin/$program" "$@"
# Ranks of a machine meet in shared memory; where a container has little of it, in files.
if [ -z "${OMPI_MCA_btl_sm_backing_directory:-}" ]; then
    free=$(df -Pk /dev/shm 2>/dev/null | sed -n '2s/^[^ ]*  *[0-9]*  *[0-9]*  *\([0-9]*\).*/\1/p')
    [ "${free:-0}" -ge $((8192 * ranks)) ] || export OMPI_MCA_btl_sm_backing_directory="${TMPDIR:-/tmp}"
fi
exec "$here/openmpi/bin/mpirun" -n "$ranks" "$here/bin/$program" "$@"
