#!/usr/bin/env bash
# The first minutes on a GPU: see benchmarks/README.md and benchmarks/gpu.sh --help.
#
#   benchmarks/gpu.sh --minutes 10                      builds, then runs what fits
#   benchmarks/gpu.sh --minutes 10 --binary ./vlm-r1    takes a program that was built elsewhere
#   benchmarks/gpu.sh --rehearse                        all parts with a tiny model, on the stand-in for CUDA (tools/stand_in)
#   benchmarks/gpu.sh --rehearse --device cpu           the same without it
#   benchmarks/gpu.sh --pack FOLDER                     FOLDER gets all that a machine without Rust needs
#
# PYTHON names the interpreter (python3). The program runs on the libraries of its PyTorch.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
most_bytes=40000000

pack() { # pack FOLDER: stripped programs, and the scripts beside them
    local folder=$1 program size
    make -C "$root" build >&2
    mkdir -p "$folder/benchmarks"
    for program in vlm-r1 vlm-r1-engine; do
        strip -o "$folder/$program" "${CARGO_TARGET_DIR:-$root/target}/release/$program"
        size=$(stat -c %s "$folder/$program")
        if ((size > most_bytes)); then
            echo "error: $folder/$program: $size bytes, expected at most $most_bytes" >&2
            exit 1
        fi
        echo "$folder/$program: $size bytes" >&2
    done
    cp "$root"/benchmarks/{gpu.sh,gpu.py,gpu_parts.py,gpu_model.py,gpu_peer.py,common.py,flop.py,shapes.py,vowels.py} "$folder/benchmarks/"
}

if [[ ${1:-} == --pack ]]; then
    pack "${2:?--pack: expected a folder}"
    exit
fi

case " $* " in
*" --binary"* | *" --help "* | *" -h "*) ;;
*) [[ -x $root/vlm-r1 ]] || make -C "$root" build >&2 ;;
esac

case " $* " in
*" --device"*) ;;
*" --rehearse "*)
    (cd "$root" && cargo xtask stand-in) >&2
    set -- "$@" --device cuda:0 --libtorch "${CARGO_TARGET_DIR:-$root/target}/stand-in/lib"
    ;;
esac

exec "${PYTHON:-python3}" "$root/benchmarks/gpu.py" "$@"
