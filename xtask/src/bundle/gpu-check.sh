#!/bin/sh
# Runs what must be seen on a GPU: see --help.
here=$(dirname "$(readlink -f "$0")")
for file in "$here/bin/xtask" "$here/mp"; do
    [ -x "$file" ] || chmod +x "$file" 2>/dev/null || {
        echo "gpu-check: $file may not be run, and nothing can be changed there: copy the bundle to a folder of your own" >&2
        exit 2
    }
done
exec "$here/bin/xtask" gpu-check --bundle "$here" "$@"
