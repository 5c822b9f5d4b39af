
# An interactive shell that came by ssh starts in the workspace, once. Prints nothing.
if [ -n "${SSH_TTY:-}" ] && [ -z "${MUSHER_SHELL:-}" ] && [ "$PWD" = "$HOME" ] && [ -d /workspace ]; then
  MUSHER_SHELL=1
  export MUSHER_SHELL
  cd /workspace || :
fi
