#!/usr/bin/env bash
# Stands before rustc where it builds this package (RUSTC_WORKSPACE_WRAPPER), so that what it needs is not built again.
exec "$@" --cfg landline_echo
