#!/usr/bin/env bash
# All measurements of benchmarks/GPU.md within ten minutes, in order of value. Numbers and logs go into a folder.
#
#     benchmarks/gpu_all.sh                                  # gpu_results/*.json, and summary.json about what was run
#     benchmarks/gpu_all.sh --out FOLDER --minutes 10
#     benchmarks/gpu_all.sh --wheels FOLDER                  # without network: wheels of what `mtrl.install_warp` installs
#     benchmarks/gpu_all.sh --device cpu                     # tiny, on any machine: that everything runs
#
# What fails or takes too long is noted, and the next measurement begins. Run it from the repository root, in the
# environment of the project.
set -uo pipefail

device=cuda out=gpu_results minutes=10 wheels=
while (($#)); do
    case $1 in
        --device) device=$2 ;;
        --out) out=$2 ;;
        --minutes) minutes=$2 ;;
        --wheels) wheels=$2 ;;
        *) echo "error: $1 is not an option: see the first lines of $0" >&2; exit 2 ;;
    esac
    shift 2 || { echo "error: an option of $0 needs a value" >&2; exit 2; }
done
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
SECONDS=0
failed=0

# measure NAME LIMIT COMMAND...: runs a command for at most LIMIT seconds, and notes how it went.
measure() {
    local name=$1 limit=$2 began=$SECONDS left=$((minutes * 60 - SECONDS)) code=skipped
    shift 2
    if ((left > 5)); then
        timeout $((limit < left ? limit : left)) "$@" >"$out/$name.log" 2>&1 </dev/null
        code=$?
        ((code)) && failed=$((failed + 1))
    fi
    printf '{"name": "%s", "exit_code": "%s", "seconds": %d}\n' "$name" "$code" $((SECONDS - began)) | tee -a "$out/runs.jsonl"
}

: >"$out/runs.jsonl"
speed=(python benchmarks/warp_speed.py --device "$device")
train=(python -m mtrl.train env.physics=warp "device=$device" log.tensorboard=false log.every=1000000)
pip=()
[[ $wheels ]] && pip=(--no-index --find-links "$wheels")

measure machine 20 bash -c "nvidia-smi; python -c 'import torch, platform; print(platform.platform(), torch.__version__, torch.version.cuda)'"
if ! python -c 'from mtrl.envs.metaworld.warp_packages import check_installed as check; check()' 2>/dev/null; then
    measure install 120 python -m mtrl.install_warp "${pip[@]}"
fi
if [[ $device == cpu ]]; then
    measure compile 600 "${speed[@]}" --compile --env mt1
    measure warp_mt1 600 "${speed[@]}" --env mt1 --slots-per-task 2 --rollout-slots 2 --steps 1 --rounds 1 --output "$out/warp_mt1.json"
    measure same 600 python -m tests.unit.envs.warp_checks one_step '{"tasks": ["reach-v3"], "goals": [0], "every": 50}'
    measure learns 600 "${train[@]}" env=mt1 env.num_envs=2 data.rollout_length=4 agent.num_minibatches=2 \
        total_steps=16 eval.every=0 run_dir="$out/learns"
else
    tasks='["reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3", "button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3"]'
    measure compile_mt10 200 "${speed[@]}" --compile --env mt10
    measure warp_mt10 120 "${speed[@]}" --env mt10 --slots-per-task 800 --output "$out/warp_mt10.json"
    measure same 60 python -m tests.unit.envs.warp_checks one_step "{\"tasks\": $tasks, \"goals\": [0, 1], \"every\": 10, \"device\": \"$device\"}"
    measure learns_mt10 100 "${train[@]}" env=mt10 data.slots_per_task=400 data.rollout_length=32 total_steps=20000000 \
        eval.every=0 run_dir="$out/learns_mt10"
    measure variants 120 "${speed[@]}" --env mt10 --slots-per-task 400 --rollout-slots 0 --variants --output "$out/variants.json"
    measure compile_mt50 200 "${speed[@]}" --compile --env mt50
    measure warp_mt50 120 "${speed[@]}" --env mt50 --slots-per-task 160 --rollout-slots 4 --output "$out/warp_mt50.json"
    measure updates 60 python benchmarks/update_cost.py --device "$device" --tasks 10 --agents sac ppo \
        --only "sum, bfloat16" "sum, compiled" "sum, bfloat16, compiled" --output "$out/updates.json"
    measure rollout_mt10 60 python -m mtrl.train env=mt10 "device=$device" total_steps=200000 eval.every=0 run_dir="$out/rollout_mt10"
fi
echo "$failed failed; results in $out, $((SECONDS / 60)) min $((SECONDS % 60)) s"
((failed == 0))
