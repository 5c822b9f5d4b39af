# Debian's /etc/profile resets PATH; the container's own is put back. Prints nothing.
if [ -n "${MUSHER_PATH:-}" ]; then
  PATH=$MUSHER_PATH
  export PATH
fi
