#!/usr/bin/env bash
# GRPO steps of Qwen2.5-VL-3B and -7B shapes on a GPU: see benchmarks/README.md and benchmarks/gpu.py --help.
#
#   benchmarks/gpu.sh                                   builds, then runs all cases
#   benchmarks/gpu.sh --binary ./vlm-r1 --case 3b-640   takes a binary that was built elsewhere
#   benchmarks/gpu.sh --smoke                           a tiny model on the CPU
#
# PYTHON names the interpreter (python3). Where it has PyTorch, the program runs on that PyTorch's libraries.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}

case " $* " in
*" --binary"* | *" --help "* | *" -h "*) ;;
*) make -C "$root" build >&2 ;;
esac

if library=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")' 2>/dev/null); then
    version=$("$python" -c 'import torch; print(torch.__version__)')
    case "$version" in
    2.11.*) export LD_LIBRARY_PATH="$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
    *)
        echo "error: $python has torch $version, expected 2.11" >&2
        echo "hint: PYTHON=... names another interpreter" >&2
        exit 1
        ;;
    esac
fi

exec "$python" "$root/benchmarks/gpu.py" "$@"
