#!/bin/bash
# Every model on the ten sets with all training images, and one table at the end. Run it again to go on.
#
#   linear_probe/multi_run.sh DATA_ROOT MODEL... [-- further settings of bamboo multi_run]
#   linear_probe/multi_run.sh /data runs/mine timm:resnet50.a1_in1k -- --launcher slurm --slurm.partition gpu
#
# A MODEL is a checkpoint as `bamboo probe` takes it, or LABEL=CHECKPOINT; commas between models do no harm.
set -euo pipefail

case "${1:-}" in
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
if [ $# -lt 2 ]; then
  echo "usage: $0 DATA_ROOT MODEL... [-- --setting VALUE ...]; $0 --help explains" >&2
  exit 2
fi

data_root=$1
shift
models=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  IFS=, read -ra words <<< "$1"
  models+=("${words[@]}")
  shift
done
if [ $# -gt 0 ]; then shift; fi
config=$(dirname "$0")/../configs/linear_probe/100p.yaml
exec "${PYTHON:-python3}" -m bamboo.linear_probe.multi_run --config "$config" --data-root "$data_root" "$@" --models "${models[@]}"
