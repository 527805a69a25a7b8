#!/bin/sh
# Runs what must be seen on a GPU: see --help.
here=$(dirname "$(readlink -f "$0")")
[ -x "$here/bin/xtask" ] || chmod +x "$here/bin/xtask"
[ -x "$here/mp" ] || chmod +x "$here/mp"
exec "$here/bin/xtask" gpu-check --bundle "$here" "$@"
