#!/bin/sh
# Installs what the tests use, where that is allowed, and runs them all.
# A test that can't run here says why and counts as ignored.
set -eu
cd "$(dirname "$0")/.."

missing=
while read -r package; do
    case $package in
        # Another build of these serves as well.
        nodejs) command -v node >/dev/null && continue ;;
        default-jdk-headless) command -v javac >/dev/null && continue ;;
    esac
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -q '^installed' || missing="$missing $package"
done <tests/packages

if [ -n "$missing" ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
        # shellcheck disable=SC2086 # a list of names
        apt-get install -y --no-install-recommends $missing >/dev/null ||
            { apt-get update >/dev/null && apt-get install -y --no-install-recommends $missing >/dev/null; } ||
            echo "could not install:$missing; the tests that need them will be ignored" >&2
    else
        echo "missing packages, whose tests will be ignored:$missing" >&2
    fi
fi

cargo test --locked "$@"
if [ $# -eq 0 ]; then
    # What there is only with optional features.
    cargo test --locked --features tokio,tracing --test tokio --test tracing
fi
