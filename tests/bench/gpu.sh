#!/usr/bin/env bash
# Everything that only a GPU shows, in at most 12 minutes, the most important first.
#
#   bash tests/bench/gpu.sh OUT                          # on a machine with one GPU (H100, H200)
#   bash tests/bench/gpu.sh OUT --device cpu --tiny      # a trial of the script, about two minutes
#
#   OUT (or $OUT)      folder for the results: one file per step, and summary.md, which is rewritten
#                      after each step; scores.json has all scores in full (ood report). Files are
#                      written as results come, eight at most.
#   --device DEVICE    cuda (default), cuda:N or cpu
#   --tiny             a tiny network, few images; for trials
#   --minutes N        time for everything (default 12); each step has its own limit within it
#   --steps A,B,…      of tests, rate, extraction, recipe, scoring, variants (default: all, in this order)
#   --parts FOLDER     where part-1, part-2, … of the images are (default: .gpu of the checkout)
#   --wheels FOLDER    wheels of packages that the machine lacks (default: .gpu/wheels)
#   --store FOLDER     runs, checkpoints and unpacked images (default: .gpu/store); a second call
#                      with the same store resumes the recipe after its last finished epoch
#
# Steps: tests (python -m pytest -m gpu), rate (FeatureNorm's ResNet-18 recipe against the
# published-style loop, images/s and the time of 100 epochs, then with --compile), extraction (with
# and without --amp), recipe (ood train of the same recipe with --amp, as far as time allows), scoring
# (three methods, all that work from activations, then all; of an unfinished recipe the weights of
# its last finished epoch), variants (rates of all other objectives against the published-style loop, and
# of the augmentations against training without them). A step that fails or exceeds its limit does not stop the others; exit
# code 1 if any did.
#
# The machine needs no network. It needs bash, coreutils' timeout, Python >= 3.11 with torch for its
# GPU and torchvision (too large to bring along), and the other dependencies of pyproject.toml;
# $PYTHON names the interpreter (default python3). What is missing is named; pure wheels go into
# .gpu/wheels:  pip download --no-deps --only-binary=:all: -d .gpu/wheels tomlkit platformdirs
# The rate with --compile needs a C++ compiler and Python's headers, the tests need pytest.
#
# Images: real ones travel in parts that fit where 64 MiB at a time may travel, with git ignoring
# .gpu. The first file with train_images is the ID set; the others are OOD sets. Without parts (or if one is missing)
# the images are synthetic, which summary.md says: rates hold, accuracies mean nothing.
#
#   python tests/bench/gpu_data.py pack cifar10.npz svhn.npz sun.npz --into .gpu --mib 48
#
# The trained weights (45 MB) stay in the store; in pieces of 15 MiB they can be brought home:
#   split -b 15M .gpu/store/runs/gpu-cuda-real/weights.safetensors "$OUT/weights-"
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
out=${OUT:-} device=cuda tiny='' minutes=12 steps=tests,rate,extraction,recipe,scoring,variants
parts=$root/.gpu wheels='' store=''
python=${PYTHON:-python3}

usage() {
  echo "error: $1; usage: gpu.sh OUT [--device D] [--tiny] [--minutes N] [--steps A,B] [--parts F]" \
    "[--wheels F] [--store F]" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --tiny) tiny=1 ;;
    --device | --minutes | --steps | --parts | --wheels | --store)
      (($# > 1)) || usage "$1 needs a value"
      declare "${1#--}=$2"
      shift
      ;;
    -*) usage "unknown option $1" ;;
    *) out=$1 ;;
  esac
  shift
done
[[ -n $out ]] || usage "no folder for the results; give one, or set OUT"
[[ $minutes =~ ^[1-9][0-9]*$ ]] || usage "--minutes is $minutes, not a whole number"
for name in ${steps//,/ }; do
  [[ $name =~ ^(tests|rate|extraction|recipe|scoring|variants)$ ]] || usage "unknown step $name"
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
: "${wheels:=$root/.gpu/wheels}" "${store:=$root/.gpu/store}"
mkdir -p "$store" && store=$(cd "$store" && pwd) || exit 1
[[ ! -d $parts ]] || parts=$(cd "$parts" && pwd)
cd "$root" || exit 1

SECONDS=0
deadline=$((minutes * 60 - 15)) # the last step has ten seconds to end, and the summary is written
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 NO_COLOR=1 COLUMNS=160
export OOD_HOME=$store OMP_WAIT_POLICY=passive
table='' details='' failed='' id='' images='' run=''
ood_sets=()

write_summary() {
  {
    echo "# GPU measurements"
    echo
    echo "$about"
    echo
    echo "Images: ${images:-none yet}. ${SECONDS} s of $((minutes * 60)) s used."
    echo
    echo "| step | result | seconds | file |"
    echo "|---|---|---:|---|"
    printf '%b' "$table"
    printf '%s\n' "$details"
  } >"$out/.summary" && mv "$out/.summary" "$out/summary.md"
}

# within COMMAND…: run it until the end of the step, its output into the step's file.
within() {
  local left=$((step_end - SECONDS))
  ((left > 0)) || return 124
  {
    printf '\n$'
    printf ' %q' "$@"
    echo
  } >>"$file"
  timeout --kill-after=10 "$left" "$@" </dev/null >>"$file" 2>&1
}

# step NAME LIMIT RESERVE: run step_NAME for at most LIMIT seconds of a 12-minute call, leaving
# RESERVE seconds of it to later steps.
step() {
  local name=$1 began=$SECONDS code limit=$(($2 * minutes / 12)) left result
  [[ ,setup,$steps, == *,$name,* ]] || return 0
  left=$((deadline - SECONDS - $3 * minutes / 12))
  ((limit < left)) || limit=$left
  file=$out/${name}.txt
  [[ $name != setup ]] || file=$store/setup.txt # no result
  : >"$file"
  if ((limit < 5)); then
    code=124
    echo "skipped: no time left" >>"$file"
  else
    step_end=$((SECONDS + limit))
    "step_$name"
    code=$?
  fi
  case $code in
    0) result='done' ;;
    124 | 137) result="stopped at its limit of $((limit > 0 ? limit : 0)) s" ;;
    *) result="failed (exit code $code)" ;;
  esac
  ((code == 0)) || failed=1
  echo "$name: $result, $((SECONDS - began)) s" >&2
  table+="| $name | $result | $((SECONDS - began)) | ${name}.txt |\n"
  details+=$'\n## '$name$'\n\n```\n'$(shown "$name")$'\n```\n'
  write_summary
}

# shown NAME: the lines of a step's file that belong into the summary.
shown() {
  case $1 in
    rate | extraction | variants) grep -E 'images/s|^torch |images of|first turn|rror' "$file" | tail -n 60 ;;
    scoring) grep -vE '^(scoring|reading|extracting)[^|]*$' "$file" | tail -n 80 ;;
    *) tail -n 14 "$file" ;;
  esac | cut -c1-400
}

# worst CODE CODE: the first that is not 0.
worst() { (($1)) && return "$1" || return "$2"; }

step_setup() {
  local code npz limit=()
  if compgen -G "$parts/part-*/*" >/dev/null; then
    [[ -z $tiny ]] || limit=(--limit 400)
    within "$python" tests/bench/gpu_data.py unpack "$parts" --into "$store/images/real$tiny" \
      "${limit[@]}"
    code=$?
    if ((code == 0)); then
      for npz in "$store/images/real$tiny"/*.npz; do
        if "$python" -c 'import numpy, sys; sys.exit("train_images" not in numpy.load(sys.argv[1]))' \
          "$npz" && [[ -z $id ]]; then
          id=$npz
        else
          ood_sets+=(--ood "$npz")
        fi
      done
    fi
    if [[ -n $id ]] && ((${#ood_sets[@]})); then
      images="real, ID $(basename "$id" .npz), OOD"
      for npz in "${ood_sets[@]}"; do [[ $npz == --ood ]] || images+=" $(basename "$npz" .npz)"; done
      images+=${tiny:+" (400 of each array)"}
      return 0
    fi
  fi
  id='' ood_sets=(--ood "$store/images/synthetic$tiny/noise.npz")
  within "$python" tests/bench/gpu_data.py synthetic --into "$store/images/synthetic$tiny" \
    --images "$((${tiny:-0} ? 400 : 50000))" || return
  id=$store/images/synthetic$tiny/synthetic.npz
  images="synthetic (no complete parts in $(basename "$parts")): rates hold, accuracies mean nothing"
}

step_tests() {
  local files
  mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
  local arguments=(-o addopts=--import-mode=importlib -q -rA -W default -p no:cacheprovider -m gpu)
  if [[ $device == cpu ]]; then
    echo "without a GPU the tests are only collected" >>"$file"
    arguments+=(--collect-only)
  fi
  within "$python" -m pytest "${arguments[@]}" "${files[@]}"
}

step_rate() {
  local common=(tests/bench/training.py --device "$device" --data "$id") code
  if [[ -n $tiny ]]; then
    common+=(--arch resnet18:width=4 --images 64 --batch-size 32 --turns 1)
    within "$python" "${common[@]}"
    return
  fi
  within "$python" "${common[@]}" --images 50000 --turns 3
  code=$?
  within "$python" "${common[@]}" --images 50000 --turns 3 --compile
  worst $code $?
}

step_extraction() {
  local bench=(tests/bench/extraction.py) code
  if [[ -n $tiny ]]; then
    within "$python" "${bench[@]}" resnet18:width=4 --device "$device" --batch 16 --images 32 --turns 1
    return
  fi
  within "$python" "${bench[@]}" resnet18 --device "$device" --batch 512 --images 10240 --turns 5
  code=$?
  within "$python" "${bench[@]}" torchvision:resnet50 --device "$device" --size 224 --batch 256 \
    --images 2048 --turns 3
  worst $code $?
}

step_recipe() {
  local command=("$python" -m oodcli train --data "$id" --recipe featurenorm-resnet18 --name "$run"
    --device "$device" --amp --resume)
  [[ -z $tiny ]] || command+=(--arch resnet18:width=4 --epochs 4)
  within "${command[@]}"
}

# Put the weights of the last finished epoch of an unfinished run into a file for ood import.
readonly WEIGHTS_OF_STATE='
import sys
from safetensors.numpy import load_file, save_file
state = load_file(sys.argv[1])
prefix = "module."
weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
save_file(weights, sys.argv[2])
'

step_scoring() {
  local ood=("$python" -m oodcli) state code methods chosen scored=$run arch=resnet18${tiny:+:width=4}
  state=$(find "$store/runs/$run" -name 'state-*.safetensors' 2>/dev/null | sort | tail -n 1)
  if [[ -n $state ]]; then
    scored=$run-$(basename "$state" .safetensors)
    echo "the recipe is unfinished: scoring the weights of $(basename "$state")" >>"$file"
    if [[ ! -d $store/runs/$scored ]]; then
      within "$python" -c "$WEIGHTS_OF_STATE" "$state" "$store/$scored.safetensors" &&
        within "${ood[@]}" import "$store/$scored.safetensors" --arch "$arch" --data "$id" \
          --name "$scored" --device "$device" || return
    fi
  fi
  local common=(--run "$scored" --device "$device" --amp)
  local score=("${ood[@]}" score "${common[@]}" "${ood_sets[@]}" --format markdown)
  [[ -z $tiny ]] || score+=(--limit 40)
  within "${ood[@]}" normratio "${common[@]}" --max-images 5000 --format markdown
  code=$?
  for methods in "--method msp --method energy --method featurenorm" "" "--method all"; do
    read -ra chosen <<<"$methods"
    within "${score[@]}" "${chosen[@]}" &&
      within "${ood[@]}" report --run "$scored" --format json --output "$out/scores.json"
    worst $code $?
    code=$?
  done
  return $code
}

step_variants() {
  local bench=(tests/bench/training.py --device "$device" --data "$id") code
  if [[ -n $tiny ]]; then
    bench+=(--arch resnet18:width=4 --images 64 --batch-size 32 --turns 1)
  else
    bench+=(--arch resnet18 --images 2560 --turns 2)
  fi
  within "$python" "${bench[@]}" --objectives all
  code=$?
  within "$python" "${bench[@]}" --augmentations
  worst $code $?
}

# What the machine lacks, one name per line.
missing() {
  "$python" - <<'PY'
import importlib.util
import re
import tomllib
from pathlib import Path

modules = {"pillow": "PIL", "scikit-learn": "sklearn"}
for line in tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]:
    name = re.match(r"[\w-]+", line).group()
    if importlib.util.find_spec(modules.get(name, name)) is None:
        print(name)
PY
}

about="no Python"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is not Python 3.11 or later; name one with PYTHON=…" | tee "$out/summary.md" >&2
  exit 1
fi
mapfile -t lacking < <(missing)
if ((${#lacking[@]})) && compgen -G "$wheels/*.whl" >/dev/null; then
  "$python" -m pip install -q --no-index --no-deps --no-cache-dir --upgrade --target "$store/site" \
    "$wheels"/*.whl >"$store/setup.txt" 2>&1
  export PYTHONPATH=$PYTHONPATH:$store/site
  mapfile -t lacking < <(missing)
fi
if ((${#lacking[@]})); then
  echo "error: $python lacks ${lacking[*]}; install them, or put their wheels into $wheels" \
    "(torch and torchvision must be there already)" | tee "$out/summary.md" >&2
  exit 1
fi
about=$("$python" - "$device" <<'PY' 2>&1
import os
import platform
import sys
import torch
import torchvision

device = sys.argv[1]
if device != "cpu":
    if not torch.cuda.is_available():
        sys.exit(f"error: torch {torch.__version__} finds no GPU; use --device cpu")
    free, whole = torch.cuda.mem_get_info(device)
    device = f"{torch.cuda.get_device_name(device)} ({whole / 2**30:.0f} GiB, {free / 2**30:.0f} free)"
cores = len(os.sched_getaffinity(0))
print(
    f"{device}, {cores} CPU cores, Python {platform.python_version()}, torch {torch.__version__}, "
    f"torchvision {torchvision.__version__}, CUDA {torch.version.cuda}"
)
PY
) || {
  echo "$about" | tee "$out/summary.md" >&2
  exit 1
}
about="$about; commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)${tiny:+; --tiny}"
echo "$about" >&2
write_summary

step setup 60 0
if [[ -z $id ]]; then
  echo "error: no images: see $store/setup.txt" >&2
  exit 1
fi
run=gpu-${device%%:*}-${images%%[, ]*}${tiny:+-tiny}
step tests 90 0
step rate 200 60
step extraction 70 60
step recipe 720 210
step scoring 720 80
step variants 80 0
write_summary
[[ -z $failed ]]
