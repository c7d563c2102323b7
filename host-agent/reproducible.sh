# Sourced by scripts that build what is shipped: has compilers leave out where this machine keeps sources and results, and
# dates come from the commit. Expects the repository's root in $root.
export LC_ALL=C TZ=UTC
umask 022
build=${CARGO_TARGET_DIR:-$root/target}
sources=${CARGO_HOME:-$HOME/.cargo}
export CARGO_TARGET_DIR=$build CARGO_INCREMENTAL=0
# The last that fits counts: results lie within the root, often.
CARGO_ENCODED_RUSTFLAGS=$(printf -- '--remap-path-prefix=%s\x1f' "$root=/strongroom" "$sources=/cargo" "$build=/build")
# What .cargo/config.toml says, which counts only where these flags are not set.
export CARGO_ENCODED_RUSTFLAGS=$CARGO_ENCODED_RUSTFLAGS--cfg=chacha20_avx512
export CFLAGS="-ffile-prefix-map=$sources=/cargo -ffile-prefix-map=$build=/build"
# Ends with an error if a program tells where it was built.
tells_no_places() {
  local program place
  for program in "$@"; do
    for place in "$root" "$sources" "$HOME/"; do
      [ "$place" = / ] || ! grep -qaF "$place" "$program" ||
        { echo "LOUD: $program tells where it was built: $place" >&2; return 1; }
    done
  done
}
