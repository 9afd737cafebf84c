#!/usr/bin/env bash
# What benchmarks/gpu_check.py needs and a bare GPU machine (Python 3.12, torch, transformers, peft, pandas, matplotlib,
# rich, scipy, no network) lacks, as wheels of 9 MB in .gpu-wheels/, which git ignores. Run where there is a network;
# carry the folder; on the machine:
#
#   python3 -m pip install --no-index --no-deps --target /tmp/site .gpu-wheels/*.whl && export PYTHONPATH=/tmp/site
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VERSION=${GPU_PYTHON:-3.12}
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
rm -rf .gpu-wheels
"$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version "$VERSION" --implementation cp "${platforms[@]}" -c constraints.txt -d .gpu-wheels \
  pydantic pydantic_core annotated-types typing-inspection SQLAlchemy alembic Mako \
  math-verify latex2sympy2_extended antlr4-python3-runtime 'liger-kernel>=0.5'
du -sh .gpu-wheels
