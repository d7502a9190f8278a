#!/bin/sh
# The relay in one network namespace and its clients in another, with a link between them that loses packets, swallows
# them, is slow or unplugged, and a second link for looking at the relay. Needs root, iproute2 and nftables; touches
# nothing outside of the two namespaces. `make netns` runs it.
set -eu

: "${CARGO:=cargo}"
relay="landline-relay-$$"
clients="landline-clients-$$"

$CARGO test --locked --test netns --no-run
trap 'ip netns del "$relay"; ip netns del "$clients"' EXIT
ip netns add "$relay"
ip netns add "$clients"
for link in 1:faulty 2:side; do
	number=${link%%:*}
	name=${link#*:}
	ip -n "$relay" link add "$name" type veth peer name "$name" netns "$clients"
	ip -n "$relay" address add "192.0.2.$((number * 16 + 1))/28" dev "$name"
	ip -n "$clients" address add "192.0.2.$((number * 16 + 2))/28" dev "$name"
	ip -n "$relay" link set "$name" up
	ip -n "$clients" link set "$name" up
done
ip -n "$relay" link set lo up
ip -n "$clients" link set lo up
LANDLINE_NETNS="$relay" RUST_BACKTRACE=0 \
	ip netns exec "$clients" $CARGO test --locked --test netns -- --ignored --nocapture
