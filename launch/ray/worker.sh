#!/usr/bin/env bash
# A Ray node that joins a head and stays until it is told to go, or the head has gone.
set -euo pipefail

if [[ $# -ne 1 || $1 != *:* ]]; then
  cat <<'EOF'
usage: RAY_AUTH_TOKEN_PATH=FILE [NAME=value ...] launch/ray/worker.sh HOST:PORT

Joins the Ray head at HOST:PORT (launch/ray/head.sh prints it) and stays until Ctrl-C, TERM or a
minute after the end of the head. Exits 3 when the head does not answer in time.

  RAY_AUTH_TOKEN_PATH=  a copy of the head's token file (mode 600)
  WAIT=600     seconds until it gives up waiting
  PORT=6400    its own ports are PORT+1 to PORT+6 and PORT+100 to PORT+1099
  CPUS=        what Ray may count on (default: all)
  LOGS=/tmp    where Ray's own logs are left when it fails
EOF
  [[ ${1-} == --help || ${1-} == -h ]] || exit 2
  exit 0
fi

# shellcheck source-path=SCRIPTDIR source=node.sh
. "${BASH_SOURCE[0]%/*}/node.sh"
trap 'hand_on TERM' INT TERM HUP USR1  # USR1: how launch/slurm/train.sbatch ends it

until answers "$1"; do
  ((SECONDS < WAIT)) || die 3 "no head answers at $1 (waited $SECONDS s)"
  sleep 1
done

start_ray --address="$1" --temp-dir="$RAY_TMPDIR/ray"
say "joined $RAY_ADDRESS"
child=$ray_pid
wait_for_child || ((handed)) || ! answers "$1" || die 1 "Ray ended here, and the head is still there"
say "left $1"
