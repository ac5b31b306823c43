#!/usr/bin/env bash
# The chart, as far as this machine can tell. Without helm its rendering is not checked, and this says so; with
# LAMINA_GET_HELM=1 and Go on the machine, helm is built once into build/tools (a few minutes and a download).
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

export PYTHONDONTWRITEBYTECODE=1
HELM_VERSION=v3.22.0
chart=charts/lamina

yamllint -d '{extends: default, rules: {line-length: {max: 140}, document-start: disable}}' $chart/Chart.yaml $chart/values.yaml
tests/chart/check_values.py

[ -f build/build.ninja ] || cmake --preset release >/dev/null
ninja -C build -j "${LAMINA_JOBS:-$(nproc)}" laminad lamina >/dev/null

# What the image installs is what the programs load.
mapfile -t listed < <(grep -oE 'lib[a-z+-]+[0-9.]+' $chart/Containerfile)
closure=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
  libc6 "${listed[@]}" |
  sed -n 's/^\([a-z0-9][^ <]*\)$/\1/p')
for library in $(ldd build/bin/laminad build/bin/lamina | grep -oE '/[^ ]+\.so[^ ]*' | sort -u); do
  file=$(readlink -f "$library")
  package=$(dpkg -S "$file" 2>/dev/null || dpkg -S "${file#/usr}")
  grep -qxF "${package%%:*}" <<<"$closure" || { echo "Containerfile: no listed package brings $library (${package%%:*})" >&2 && exit 1; }
done
echo "image: its packages bring every library of laminad and lamina"

tests/chart/check_dashboard.py build/bin

helm=$(command -v helm || true)
if [ -z "$helm" ] && [ -x build/tools/helm ]; then helm=$PWD/build/tools/helm; fi
if [ -z "$helm" ] && [ "${LAMINA_GET_HELM:-}" = 1 ] && command -v go >/dev/null; then
  echo "helm $HELM_VERSION: building it with Go"
  GOBIN=$PWD/build/tools go install "helm.sh/helm/v3/cmd/helm@$HELM_VERSION" && helm=$PWD/build/tools/helm
fi
if [ -z "$helm" ]; then
  cat <<'T'
SKIPPED for want of helm: helm lint --strict; podFixed beside the config's overhead; the rendered config read by lamina and
laminad; refusals by helm itself; selectors, ports, mounts and rights of the DaemonSet; the dashboard's ConfigMap.
Install helm 3, or call LAMINA_GET_HELM=1 ./dev test chart where Go is.
T
  exit 0
fi
tests/chart/check_rendered.py "$helm" build/bin
