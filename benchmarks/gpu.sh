#!/usr/bin/env bash
# Does this machine's CUDA GPU compute what the CPU computes, and how fast is it? Tables come last, within ten minutes.
#
#     bash benchmarks/gpu.sh [--output FOLDER] [--budget SECONDS] [--dry]
#
# Needs the extra "test". Each step has a limit, and none that fails ends the others. FOLDER gets a log of every step.
# --dry runs what can be run without a GPU, at tiny sizes.
set -u
cd "$(dirname "$0")/.."
output=$PWD/runs/gpu budget=570 device=cuda
while [ $# -gt 0 ]; do
    case $1 in
    --output) output=$2 && shift ;;
    --budget) budget=$2 && shift ;;
    --dry) device=cpu ;;
    *) echo "gpu.sh: unknown $1; there are --output, --budget and --dry" >&2 && exit 2 ;;
    esac
    shift
done
python=${PYTHON:-python}
if [ $device = cuda ] && ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu.sh: PyTorch finds no CUDA GPU here; --dry checks the script without one" >&2 && exit 2
fi
mkdir -p "$output"
output=$(cd "$output" && pwd)
failed=0

step() { # name, most seconds, command …
    local name=$1 limit=$2 code=0
    shift 2
    local left=$((budget - SECONDS))
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 10 ]; then
        echo "[$SECONDS s] $name: no time left"
        return
    fi
    timeout -k 5 "$limit" "$@" >"$output/$name.log" 2>&1 </dev/null || code=$?
    echo "[$SECONDS s] $name: exit $code"
    if [ $code != 0 ]; then
        failed=1
        tail -n 3 "$output/$name.log" | cut -c1-200
    fi
}
tests() { step "$1" 150 "$python" -m pytest -q -n 4 "${@:2}"; }
bench() { step "$1" "$2" "$python" -m "benchmarks.$3" "${@:4}"; }
train() { # name, flags …: trained, gone on with, and scored again
    rm -rf "${output:?}/runs/$1"
    step "$1" 90 bash -c 'set -e; python=$1 run=$2; shift 2
        "$python" train.py --run_dir "$run" --evaluation.every 0 --evaluation.episodes 3 "$@"
        "$python" train.py --run_dir "$run" --resume true
        "$python" evaluate.py "$run" --episodes 2' _ "$python" "$output/runs/$1" --device $device "${@:2}"
}

# Does it work?
if [ $device = cuda ]; then
    tests laws tests/laws -k "gpu or cuda"
    tests agents tests/agents/test_update.py tests/agents/test_recorded.py tests/agents/test_ppo_recorded.py tests/laws/test_ppo_ratio.py
    train decision --steps 400
    train ppo --config ppo/cartpole_masked --steps 4096
    train tensor --config ppo/cartpole_masked --vector tensor --n_envs 4096 --n_steps 32 --batch_size 16384 --steps 2000000
else
    tests laws tests/laws/test_laws.py -k "mingru and steps"
    train decision --steps 4 --batch_size 8 --backbone.d_model 16
    train ppo --config ppo/cartpole_masked --steps 512
    train tensor --config ppo/cartpole_masked --vector tensor --steps 512
fi

# How fast is it?
if [ $device = cuda ]; then
    bench scans 60 gpu --tables scans selective --output "$output/json"
    bench ppo 70 gpu --tables ppo --output "$output/json"
    bench updates 110 gpu --tables updates --output "$output/json"
    bench acting 40 gpu --tables acting --output "$output/json"
    bench training 75 training --device cuda --threads 4 --repeats 3 --updates 10 --no-compile
    bench layers 60 kernels --device cuda --tables layers --repeats 5
    bench tensor_tasks 90 tensor_tasks --device cuda --n_envs 64,4096 --repeats 3
    bench scaling 60 scaling --device cuda --backbones mingru,minlstm,gru,lstm,transformer --limit 2 \
        --lengths 256,1024,4096,16384 --tokens 131072 --d_model 256 --output "$output/scaling"
    bench copying 30 selective_copying --paper --device cuda --updates 60 --backbones mingru --output "$output/copying"
else
    bench training 90 training --threads 1 --repeats 1 --updates 1 --no-compile --backbones mingru
    bench layers 60 kernels --device cpu --tables layers --shapes 2,8,16 --repeats 1 --threads 1
    bench scaling 60 scaling --backbones mingru --lengths 8,16 --tokens 16 --d_model 16 --repeats 1
fi

for name in scans ppo updates acting training layers tensor_tasks scaling copying; do
    if grep -q '^|' "$output/$name.log" 2>/dev/null; then
        printf '\n## %s\n\n' "$name"
        grep '^|' "$output/$name.log"
    fi
done
exit $failed
