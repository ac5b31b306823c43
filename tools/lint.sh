#!/usr/bin/env bash
# The code's form: clang-format, who may include whom, sizes, pages, shell scripts, YAML.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
failed=0

mapfile -t sources < <(git ls-files '*.cc' '*.h')
if [ ${#sources[@]} -gt 0 ]; then
  printf '%s\n' "${sources[@]}" | xargs -n 20 -P "$(nproc)" clang-format --dry-run --Werror || failed=1
fi
tools/check_includes.py || failed=1
tools/check_form.py || failed=1
mapfile -t scripts < <(git ls-files '*.sh' dev .ci/run)
shellcheck -x "${scripts[@]}" || failed=1
mapfile -t yaml < <(git ls-files '*.yaml' '*.yml' | grep -v '/templates/' || true)
[ ${#yaml[@]} -eq 0 ] || yamllint -d '{extends: default, rules: {line-length: {max: 140}, document-start: disable}}' "${yaml[@]}" || failed=1
[ $failed = 0 ] && echo "lint: clean"
exit $failed
