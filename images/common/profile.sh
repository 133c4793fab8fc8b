# shellcheck shell=sh
# Installed as /etc/profile.d/pody.sh: /etc/profile resets PATH, and with it what
# the image put there. pody-entrypoint passes the image's own on as PODY_PATH.
if [ -n "${PODY_PATH:-}" ]; then
    PATH=$PODY_PATH
    unset PODY_PATH
fi
