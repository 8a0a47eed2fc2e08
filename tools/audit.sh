#!/usr/bin/env bash
# Known vulnerabilities of the pinned dependencies. Exit status 1 if there are any; says so where the database cannot be reached.
set -uo pipefail
cd "$(dirname "$0")/.."
command -v pip-audit >/dev/null || { echo "audit: pip install pip-audit" >&2; exit 2; }
output=$(pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off 2>&1)
status=$?
pinned=$(grep -c == constraints.txt)
unknown=$(grep -c 'could not be audited' <<<"$output")
grep -v 'could not be audited' <<<"$output"
if grep -qE 'Found [0-9]+ known vulnerabilit' <<<"$output"; then
  exit 1
elif [ $status -ne 0 ] || [ "$unknown" -ge "$pinned" ]; then
  echo "audit: the vulnerability database could not be reached; nothing was checked" >&2
else
  echo "audit: $((pinned - unknown)) of $pinned pinned packages were checked"
fi
